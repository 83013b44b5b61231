// The 1x1 convolution: rows of pixels [pixels][lanes] times a matrix that was laid out for it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "vectors.h"

namespace {

// Output channels are computed in panels of a few vectors, as many pixels at a time as leave all sums in registers, of
// which AVX-512 has 32 of a whole vector each, and AVX2 16 of half a vector.
#ifdef __AVX512F__
constexpr int64_t WIDEST = 5;
constexpr int rows_of(int vectors) { return vectors == 1 ? 24 : vectors == 2 ? 14 : vectors == 5 ? 5 : 7; }
constexpr int64_t BLOCK = 35;  // whole blocks of 5 and of 7 pixels
#else
constexpr int64_t WIDEST = 1;
constexpr int rows_of(int) { return 6; }
constexpr int64_t BLOCK = 6;
#endif

int64_t packed_size(int64_t in_channels, int64_t out_channels) { return padded(in_channels) * padded(out_channels); }

// Where a panel begins; no panel is narrower than it has to be.
int64_t panel_start(int64_t out_channels, int64_t panel) {
  const int64_t all = padded(out_channels) / LANES, panels = (all + WIDEST - 1) / WIDEST;
  return all * panel / panels * LANES;
}

// LANES vectors as a square: exchanges blocks off the diagonal, from large to small.
template <int SIZE> ALWAYS void transpose(Vec (&rows)[LANES]) {
  if constexpr (SIZE > 0) {
    IntVec upper, lower;  // where each lane comes from: LANES and more for the second of two
    for (int lane = 0; lane < LANES; lane++) {
      upper[lane] = lane & SIZE ? LANES + lane - SIZE : lane;
      lower[lane] = lane & SIZE ? LANES + lane : lane + SIZE;
    }
    for (int row = 0; row < LANES; row++) {
      if (row & SIZE) continue;
      const Vec a = rows[row], b = rows[row + SIZE];
#ifdef __clang__
      for (int lane = 0; lane < LANES; lane++) {
        rows[row][lane] = lane & SIZE ? b[lane - SIZE] : a[lane];
        rows[row + SIZE][lane] = lane & SIZE ? b[lane] : a[lane + SIZE];
      }
#else
      rows[row] = __builtin_shuffle(a, b, upper);
      rows[row + SIZE] = __builtin_shuffle(a, b, lower);
#endif
    }
    transpose<SIZE / 2>(rows);
  }
}

// Stores what was row i of an operand's matrix: alone, or as a pair with the next one.
ALWAYS void store_step(float* to, Vec row, Vec) { store_all(to, row); }
ALWAYS void store_step(bfloat16* to, Vec row, Vec next) {
  const UIntVec low = __builtin_convertvector(narrow(row), UIntVec), high = __builtin_convertvector(narrow(next), UIntVec);
  store_all(reinterpret_cast<float*>(to), reinterpret_cast<Vec>(low | high << 16));
}

// A matrix [out][in] as panels, within each [in / step][outputs][step].
template <class M, class E> void pack_matrix(const M* matrix, int64_t in_channels, int64_t out_channels, E* packed) {
  constexpr int64_t step = step_of(static_cast<E*>(nullptr));
  const int64_t depth = padded(in_channels), panels = (padded(out_channels) / LANES + WIDEST - 1) / WIDEST;
#pragma omp parallel for schedule(static)
  for (int64_t which = 0; which < panels; which++) {
    const int64_t start = panel_start(out_channels, which), width = panel_start(out_channels, which + 1) - start;
    for (int64_t i = 0; i < depth; i += LANES)
      for (int64_t o = 0; o < width; o += LANES) {
        const int64_t n = std::min(LANES, in_channels - i);
        Vec square[LANES];
        for (int64_t row = 0; row < LANES; row++)
          square[row] = start + o + row < out_channels ? load(matrix + (start + o + row) * in_channels + i, n) : zeros();
        transpose<LANES / 2>(square);
        for (int64_t row = 0; row < LANES; row += step)
          store_step(packed + start * depth + ((i + row) / step * width + o) * step, square[row], square[row + step - 1]);
      }
  }
}

// M pixels of a times a panel of V vectors.
template <int M, int V, class E, class T>
ALWAYS void multiply_block(const E* a, int64_t lanes, const E* panel, int64_t depth, const float* bias, T* to,
                           int64_t to_pixel, int64_t columns) {
  constexpr int64_t step = step_of(static_cast<E*>(nullptr));
  Vec sums[M][V];
#pragma GCC unroll 32
  for (int m = 0; m < M; m++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sums[m][v] = load_all(bias + v * LANES);
  for (int64_t i = 0; i < depth; i += step) {
#pragma GCC unroll 32
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
      for (int v = 0; v < V; v++)
        sums[m][v] = multiply_add(sums[m][v], a + m * lanes + i, panel + i * V * LANES + v * LANES * step);
  }
#pragma GCC unroll 32
  for (int m = 0; m < M; m++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++)
      if (columns > v * LANES)
        store(to + m * to_pixel + v * LANES, sums[m][v], std::min<int64_t>(LANES, columns - v * LANES));
}

// M pixels at a time, and what is left over by halves of that.
template <int M, int V, class E, class T>
void multiply_panel(const E* a, int64_t pixels, int64_t lanes, const E* panel, int64_t depth, const float* bias, T* to,
                    int64_t to_pixel, int64_t columns) {
  int64_t x = 0;
  for (; x + M <= pixels; x += M)
    multiply_block<M, V>(a + x * lanes, lanes, panel, depth, bias, to + x * to_pixel, to_pixel, columns);
  if constexpr (M > 1)
    if (x < pixels)
      multiply_panel<M / 2, V>(a + x * lanes, pixels - x, lanes, panel, depth, bias, to + x * to_pixel, to_pixel, columns);
}

template <class E, class T>
void multiply(const E* a, int64_t pixels, int64_t in_channels, const E* packed, const float* bias, T* to,
              int64_t out_channels) {
  const int64_t lanes = padded(in_channels), depth = (in_channels + 1) / 2 * 2;  // whole pairs; what is added are zeros
  int64_t next = 0;
  for (int64_t panel = 0, start = 0; start < out_channels; panel++, start = next) {
    next = panel_start(out_channels, panel + 1);
    auto run = [&](auto count) {
      constexpr int V = decltype(count)::value;
      multiply_panel<rows_of(V), V>(a, pixels, lanes, packed + start * lanes, depth, bias + start, to + start,
                                    out_channels, out_channels - start);
    };
    switch ((next - start) / LANES) {
      case 1: run(std::integral_constant<int, 1>()); break;
#ifdef __AVX512F__
      case 2: run(std::integral_constant<int, 2>()); break;
      case 3: run(std::integral_constant<int, 3>()); break;
      case 4: run(std::integral_constant<int, 4>()); break;
      default: run(std::integral_constant<int, 5>());
#endif
    }
  }
}

}  // namespace
