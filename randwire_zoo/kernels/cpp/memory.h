// Memory of the passes, and how many threads they have.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "vectors.h"

namespace {

#ifdef _OPENMP
int max_threads() { return omp_get_max_threads(); }
#else  // a compiler without OpenMP: one thread
int max_threads() { return 1; }
#endif

// Memory aligned to vectors; zeros, unless every element will be written before it is read.
template <class T> struct Buffer {
  T* data;
  Buffer(Buffer&& other) : data(other.data) { other.data = nullptr; }
  Buffer(const Buffer&) = delete;
  explicit Buffer(int64_t size, bool zeroed = true) {
    const size_t bytes = (size * sizeof(T) + 127) / 64 * 64;
    data = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (data == nullptr) throw std::bad_alloc();
    if (zeroed) std::memset(static_cast<void*>(data), 0, bytes);
  }
  ~Buffer() { std::free(data); }
};

}  // namespace
