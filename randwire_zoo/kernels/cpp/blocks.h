// What lies between the steps of a node's backward pass: laid out in blocks of LANES channels, [block][pixels][LANES],
// so that each loop walks over pixels with everything of its block in registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "memory.h"
#include "pointwise.h"
#include "sums.h"
#include "vectors.h"

namespace {

// How the backward pass's products are cut, so that their sums, 24 or 12 vectors, stay in registers: that with a matrix
// into panels of PRODUCT_VECTORS, as many pixels at a time as `product_rows_of` says; the matrix's own gradient into
// TILE_VECTORS by TILE_ROWS, which divide LANES.
constexpr int PRODUCT_VECTORS = MANY_REGISTERS ? 3 : 2, TILE_VECTORS = 3, TILE_ROWS = MANY_REGISTERS ? 8 : 4;
constexpr int product_rows_of(int vectors) { return MANY_REGISTERS ? 8 : 12 / vectors; }

constexpr int64_t AHEAD = 4096;  // bytes: a sum's inputs are fetched a page before their time

template <class T> void clear(T* data, int64_t size) { std::memset(static_cast<void*>(data), 0, size * sizeof(T)); }

// The vectors of some pixels, one after the other.
ALWAYS void store_plain(float* to, const Vec (&value)[1]) { store_all(to, value[0]); }
ALWAYS void store_plain(bfloat16* to, const Vec (&value)[2]) {
#ifdef __AVX512BF16__
  _mm512_storeu_si512(to, narrow_two(value[0], value[1]));
#else
  store_all(to, value[0]);
  store_all(to + LANES, value[1]);
#endif
}

// Some neighbouring blocks of all: one of the panels of at most `most`, of which none is narrower than it has to be.
struct Panel {
  int64_t start, width;
  ALWAYS Panel(int64_t blocks, int64_t panel, int most) {
    const int64_t panels = ceil_div(blocks, most);
    start = blocks * panel / panels;
    width = blocks * (panel + 1) / panels - start;
  }
};

// A weighted sum, vector by vector in the order of memory, for which this is as fast as the data come: U pixels at a
// time, emit(first pixel, block, values).
template <int U, class T, class Emit>
ALWAYS void over_sum(const Sum<T>& sum_of, int64_t first, int64_t size, int64_t channels, Emit emit) {
  const int64_t lanes = padded(channels);
  with_constant<5>(sum_of.count, [&](auto constant) INLINED {
    constexpr int K = decltype(constant)::value;
    const int64_t k_end = K < 5 ? K : sum_of.count;
    for (int64_t x = 0; x < size; x += U) {
      auto vectors = [&](int64_t c, int64_t n) INLINED {
        Vec value[U];
        for (int u = 0; u < U; u++) value[u] = load_all(sum_of.bias.data + c);
        for (int64_t k = 0; k < k_end; k++) {
          const Vec weight = load_all(sum_of.weights.data + k * lanes + c);
          const T* const from = sum_of.inputs[k] + (first + x) * channels + c;
          for (int u = 0; u < U; u++) {
            __builtin_prefetch(reinterpret_cast<const char*>(from + u * channels) + AHEAD, 0, 2);
            value[u] += weight * load(from + u * channels, n);
          }
        }
        emit(x, c / LANES, value);
      };
      int64_t c = 0;
      for (; c + LANES <= channels; c += LANES) vectors(c, LANES);
      if (c < channels) vectors(c, channels - c);
    }
  });
}

// How many outputs a matrix is padded to, with zeros, for its product with their gradients.
template <class E> int64_t product_depth(int64_t out_channels) {
  return by_amx<E>() ? padded(out_channels) : ceil_div(out_channels, PAIRED<E>) * PAIRED<E>;
}

// A matrix [out][in] as panels for the product from the right with gradients of out, [out / PAIRED][inputs][PAIRED]:
// outputs begin to end of it, of which begin is a whole number of PAIRED; those behind the last are zeros.
template <class E>
NEVER_INLINED void pack_transposed(const float* matrix, int64_t in_channels, int64_t out_channels, int64_t begin,
                                   int64_t end, E* packed) {
  constexpr int64_t step = PAIRED<E>;
  const int64_t blocks = padded(in_channels) / LANES, panels = ceil_div(blocks, PRODUCT_VECTORS);
  const int64_t depth = product_depth<E>(out_channels);
  for (int64_t o = begin; o < end; o += step)
    for (int64_t panel = 0; panel < panels; panel++) {
      const auto [start, width] = Panel(blocks, panel, PRODUCT_VECTORS);
      E* to = packed + (start * depth + o * width) * LANES;
      for (int64_t block = start; block < start + width; block++, to += LANES * step) {
        const float* from = matrix + o * in_channels + block * LANES;
        const int64_t n = std::min(LANES, in_channels - block * LANES);
        store_step(to, o < out_channels ? load(from, n) : zeros(),
                   o + 1 < out_channels ? load(from + (step - 1) * in_channels, n) : zeros());
      }
    }
}

// One row of a depthwise 3x3 convolution for one block: emit(x, value) for each output. `rows` point at the padding.
template <int S, int U, class E, class Emit>
ALWAYS int64_t convolve_pixels(const E* const* rows, int64_t dilation, const Vec* w, int64_t x, int64_t width,
                               Emit emit) {
  for (; x + U <= width; x += U) {
    Vec sums[U];
    for (int u = 0; u < U; u++) sums[u] = zeros();
    for (int ky = 0; ky < 3; ky++) {
      const E* from = rows[ky] + x * S * LANES;
      if (S == 1 && dilation == 1) {
        Vec taps[U + 2];
        for (int u = 0; u < U + 2; u++) taps[u] = load_all(from + u * LANES);
        for (int kx = 0; kx < 3; kx++)
          for (int u = 0; u < U; u++) sums[u] += w[ky * 3 + kx] * taps[u + kx];
      } else {
        for (int kx = 0; kx < 3; kx++)
          for (int u = 0; u < U; u++) sums[u] += w[ky * 3 + kx] * load_all(from + (u * S + kx * dilation) * LANES);
      }
    }
    for (int u = 0; u < U; u++) emit(x + u, sums[u]);
  }
  return x;
}

template <int S, class E, class Emit>
ALWAYS void convolve_row(const E* const* rows, int64_t dilation, const Vec* w, int64_t width, Emit emit) {
  int64_t x = 0;
  if (width % 7 == 0) x = convolve_pixels<S, 7>(rows, dilation, w, x, width, emit);
  x = convolve_pixels<S, 4>(rows, dilation, w, x, width, emit);
  x = convolve_pixels<S, 2>(rows, dilation, w, x, width, emit);
  convolve_pixels<S, 1>(rows, dilation, w, x, width, emit);
}

}  // namespace
