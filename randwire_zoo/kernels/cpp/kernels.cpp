// The passes of a RandWire stage over its data, fused, for the CPU: see `library.py` for what calls them.
//
// All tensors are dense NHWC ("channels_last"). Vectors of per-channel numbers are padded to a multiple of LANES with
// zeros, and so are the rows of data kept between two passes, so that inner loops have no remainder; tensors are not
// padded, and the last vector of a pixel is read and written in part. Sums are taken in float within an image and in
// double across images; each task has its own, which are added in the order of the tasks: the same number of threads
// gives the same bits.
#include "memory.h"
#include "pointwise.h"
#include "stage.h"
#include "stage_backward.h"
#include "stage_forward.h"
#include "vectors.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

namespace {

// Whether there was enough for what is called: an exception has no way through whoever calls this library.
template <class Call> bool enough_memory(Call call) {
  try {
    call();
  } catch (const std::bad_alloc&) {
    return false;
  }
  return true;
}

}  // namespace

#define EXPORT(NAME, T)                                                                                              \
  extern "C" int64_t packed_bytes_##NAME(int64_t in_channels, int64_t out_channels) {                                \
    return packed_size(in_channels, out_channels) * sizeof(Operand<T>::type);                                        \
  }                                                                                                                  \
  extern "C" void pack_##NAME(const T* matrix, int64_t in_channels, int64_t out_channels, void* packed) {            \
    pack_matrix(matrix, in_channels, out_channels, static_cast<Operand<T>::type*>(packed));                          \
  }                                                                                                                  \
  extern "C" void pack_from_float32_##NAME(const float* matrix, int64_t in_channels, int64_t out_channels,           \
                                           void* packed) {                                                           \
    pack_matrix(matrix, in_channels, out_channels, static_cast<Operand<T>::type*>(packed));                          \
  }                                                                                                                  \
  extern "C" bool stage_##NAME(const StageArguments* arguments) {                                                    \
    return enough_memory([&] { StageForward<T>(*arguments).run(); });                                                \
  }                                                                                                                  \
  extern "C" bool stage_backward_##NAME(const StageArguments* arguments, const StageGradients* gradients) {          \
    return enough_memory([&] { StageBackward<T>(*arguments, *gradients).run(); });                                   \
  }

// How many threads the passes take; without OpenMP it stays one.
extern "C" void use_threads([[maybe_unused]] int64_t count) {
#ifdef _OPENMP
  omp_set_num_threads(static_cast<int>(count));
#endif
}

// Whether it may be more than one.
extern "C" bool has_threads() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

// What this was compiled for, that is the best of what the processor has and the code names.
extern "C" const char* instruction_set() {
#if defined(__AVX512BF16__)
  if (amx_allowed()) return "amx_bf16";
  return "avx512_bf16";
#elif defined(__AVX512BW__) && defined(__AVX512VL__)
  return "avx512";
#elif defined(__AVX512F__)  // without the extensions that put numbers narrower than 32 bits in its vectors
  return "avx512f";
#elif defined(__AVX2__)
  return "avx2";
#elif defined(__AVX__)
  return "avx";
#elif defined(__SSE2__)
  return "sse";
#elif defined(__ARM_NEON)
  return "neon";
#else
  return "C++ alone";
#endif
}

// A sample of each of `count` arrays: up to 16 of their words of 32 bits, evenly spaced, in one number. Halves of such
// words would leave the signs and exponents of float32 unseen where the spacing is even.
extern "C" void samples(const uint8_t* const* data, const int64_t* bytes, int64_t count, uint64_t* out) {
  for (int64_t k = 0; k < count; k++) {
    const int64_t size = bytes[k] < 4 ? 2 : 4, words = bytes[k] / size, taken = std::min<int64_t>(words, 16);
    uint64_t hash = 14695981039346656037u;
    for (int64_t i = 0; i < taken; i++) {
      uint32_t word = 0;
      std::memcpy(&word, data[k] + size * (words * i / taken), size);
      hash = (hash ^ word) * 1099511628211u;
    }
    out[k] = hash;
  }
}

EXPORT(float32, float)
EXPORT(bfloat16, bfloat16)
