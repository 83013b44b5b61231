// The 1x1 convolution: rows of pixels [pixels][lanes] times a matrix that was laid out for it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "amx.h"
#include "vectors.h"

namespace {

// Output channels are computed in panels of a few vectors, as many pixels at a time as leave all sums in registers.
constexpr int WIDEST = MANY_REGISTERS ? 5 : 2;
constexpr int rows_of(int vectors) {
  if (!MANY_REGISTERS) return vectors == 1 ? 12 : 6;
  return vectors == 1 ? 24 : vectors == 2 ? 14 : vectors == 5 ? 5 : 7;
}
constexpr int64_t BLOCK = MANY_REGISTERS ? 35 : 12;  // whole blocks of 5 and of 7 pixels, or of 6

int64_t packed_size(int64_t in_channels, int64_t out_channels) { return padded(in_channels) * padded(out_channels); }

int64_t panels_of(int64_t out_channels) { return (padded(out_channels) / LANES + WIDEST - 1) / WIDEST; }

// Where a panel begins; no panel is narrower than it has to be.
int64_t panel_start(int64_t out_channels, int64_t panel) {
  return padded(out_channels) / LANES * panel / panels_of(out_channels) * LANES;
}

// Which panel a vector of outputs lies in.
int64_t panel_of(int64_t out_channels, int64_t channel) {
  int64_t panel = 0;
  while (panel_start(out_channels, panel + 1) <= channel) panel++;
  return panel;
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
#ifdef __AVX512BF16__
  const __m512i both = narrow_two(row, next);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(_mm512_set_epi16(
      31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16,
      0), both));
#else
  const UIntVec low = __builtin_convertvector(narrow(row), UIntVec);
  const UIntVec high = __builtin_convertvector(narrow(next), UIntVec);
  store_all(reinterpret_cast<float*>(to), reinterpret_cast<Vec>(low | high << 16));
#endif
}

// LANES steps of n elements of an operand's row: elements, or pairs of neighbours in 32 bits each.
template <class M> ALWAYS Vec load_steps(const M* row, int64_t n, const float*) {
  return n < LANES ? load_some(row, n) : load_all(row);
}
template <class M> ALWAYS Vec load_steps(const M* row, int64_t n, const bfloat16*) {
  const HalfVec halves[2] = {narrow(n < LANES ? load_some(row, n) : load_all(row)),
                             n <= LANES ? HalfVec{} : narrow(load(row + LANES, std::min(LANES, n - LANES)))};
  Vec steps;
  std::memcpy(&steps, halves, sizeof steps);
  return steps;
}

// Rows of a matrix [out][in], LANES of them from `block` on, to where they belong in panels [in / step][outputs][step].
template <class M, class E>
void pack_rows(const M* matrix, int64_t in_channels, int64_t out_channels, int64_t block, E* packed) {
  constexpr int64_t step = PAIRED<E>;
  const int64_t depth = padded(in_channels), panel = panel_of(out_channels, block * LANES);
  const int64_t start = panel_start(out_channels, panel), width = panel_start(out_channels, panel + 1) - start;
  const int64_t rows = std::min(LANES, out_channels - block * LANES);
  const M* const from = matrix + block * LANES * in_channels;
  E* const to = packed + start * depth + (block * LANES - start) * step;
  // Along the rows, which are read as fast as they come from memory. What outputs are padded with is never stored.
  auto square_at = [&](int64_t i, int64_t n) INLINED {
    Vec square[LANES];
#pragma GCC unroll 16
    for (int64_t row = 0; row < LANES; row++)
      square[row] = load_steps(from + std::min(row, rows - 1) * in_channels + i, n, packed);
    transpose<LANES / 2>(square);
    for (int64_t row = 0; row < std::min(LANES, (depth - i) / step); row++)
      store_all(reinterpret_cast<float*>(to + (i / step + row) * width * step), square[row]);
  };
  int64_t i = 0;
  for (; i + LANES * step <= in_channels; i += LANES * step) square_at(i, LANES * step);
  if (i < in_channels) square_at(i, in_channels - i);
}

// The whole of it.
template <class M, class E> void pack_matrix(const M* matrix, int64_t in_channels, int64_t out_channels, E* packed) {
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < padded(out_channels) / LANES; block++)
    pack_rows(matrix, in_channels, out_channels, block, packed);
}

// sums[m][v] += a[m] * b[v] for M elements, or pairs, of a that lie `apart` elements from each other.
template <int M, int V, class E>
ALWAYS void outer_product(Vec (&sums)[M][V], const E* a, int64_t apart, const E* b, int64_t next_vector) {
  Vec vectors[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) vectors[v] = load_operand(b + v * next_vector);
#pragma GCC unroll 32
  for (int m = 0; m < M; m++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sums[m][v] = multiply_add(sums[m][v], a + m * apart, vectors[v]);
}

// M pixels of a times a panel of V vectors.
template <int M, int V, class E, class T>
ALWAYS void multiply_block(const E* a, int64_t lanes, const E* panel, int64_t depth, const float* bias, T* to,
                           int64_t to_pixel, int64_t columns) {
  constexpr int64_t step = PAIRED<E>;
  Vec sums[M][V];
#pragma GCC unroll 32
  for (int m = 0; m < M; m++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sums[m][v] = load_all(bias + v * LANES);
  for (int64_t i = 0; i < depth; i += step)
    outer_product(sums, a + i, lanes, panel + i * V * LANES, LANES * step);
#pragma GCC unroll 32
  for (int m = 0; m < M; m++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++)
      if (columns > v * LANES)
        store(to + m * to_pixel + v * LANES, sums[m][v], std::min<int64_t>(LANES, columns - v * LANES));
}

// M pixels at a time, and what is left over by halves of that; `meanwhile` is called for each block.
template <int M, int V, class E, class T, class Meanwhile>
void multiply_pixels(const E* a, int64_t pixels, int64_t lanes, const E* panel, int64_t depth, const float* bias, T* to,
                     int64_t to_pixel, int64_t columns, Meanwhile& meanwhile) {
  int64_t x = 0;
  for (; x + M <= pixels; x += M) {
    meanwhile();
    multiply_block<M, V>(a + x * lanes, lanes, panel, depth, bias, to + x * to_pixel, to_pixel, columns);
  }
  if constexpr (M > 1)
    if (x < pixels)
      multiply_pixels<M / 2, V>(a + x * lanes, pixels - x, lanes, panel, depth, bias, to + x * to_pixel, to_pixel,
                                columns, meanwhile);
}

#ifdef RANDWIRE_AMX
// The same by AMX. AMX_BEHIND pixels are read behind the last.
template <class T, class Meanwhile>
void multiply_by_amx(const bfloat16* a, int64_t pixels, int64_t lanes, const bfloat16* panel, int64_t vectors,
                     const float* bias, T* to, int64_t to_pixel, int64_t columns, Meanwhile& meanwhile) {
  AmxUnit unit;
  AmxSums sums;
  for (int64_t x = 0; x < pixels; x += 2 * AMX_ROWS) {
    meanwhile();
    const int64_t rows = std::min(2 * AMX_ROWS, pixels - x);
    for (int64_t v = 0; v < vectors; v += 2)
      with_amx_tiles(rows, vectors - v, [&](auto m, auto count) INLINED {
        constexpr int M = decltype(m)::value, V = decltype(count)::value;
        amx_begin<M, V>(bias + v * LANES);
        amx_product<M, V>({a + x * lanes, AMX_ROWS * lanes, lanes, AMX_DEPTH},
                          {panel + v * LANES * 2, LANES * 2, vectors * LANES * 2, AMX_DEPTH * vectors * LANES},
                          lanes / LANES);
        sums.template take<M, V>();
        T* const pixel = to + x * to_pixel + v * LANES;
        const int64_t last = std::min<int64_t>(LANES, columns - (v + V - 1) * LANES);  // columns of the last vector
        sums.template for_each_row<V>(rows, last, [&](int64_t row, int u, Vec sum, int64_t n) INLINED {
          store(pixel + row * to_pixel + u * LANES, sum, n);
        });
      });
  }
}
#endif

// How many pixels are taken at a time, whatever the panel.
template <class E> int64_t block_of() { return by_amx<E>() ? 2 * AMX_ROWS : BLOCK; }

// How often `multiply_pixels` calls that for all panels, about.
template <class E> int64_t blocks_of(int64_t pixels, int64_t out_channels) {
  if (by_amx<E>()) return ceil_div(pixels, block_of<E>()) * panels_of(out_channels);
  int64_t blocks = 0;
  for (int64_t panel = 0; panel < panels_of(out_channels); panel++) {
    const int64_t width = panel_start(out_channels, panel + 1) - panel_start(out_channels, panel);
    blocks += pixels / rows_of(static_cast<int>(width / LANES));
  }
  return std::max<int64_t>(blocks, 1);
}

// Some pixels times one panel.
template <class E, class T, class Meanwhile>
void multiply_panel(const E* a, int64_t pixels, int64_t in_channels, const E* packed, const float* bias, T* to,
                    int64_t out_channels, int64_t panel, Meanwhile& meanwhile) {
  const int64_t lanes = padded(in_channels), depth = (in_channels + 1) / 2 * 2;  // whole pairs; what is added are zeros
  const int64_t start = panel_start(out_channels, panel);
  const int64_t vectors = (panel_start(out_channels, panel + 1) - start) / LANES;
#ifdef RANDWIRE_AMX
  if constexpr (PAIRED<E> > 1)
    if (by_amx<E>())
      return multiply_by_amx(a, pixels, lanes, packed + start * lanes, vectors, bias + start, to + start, out_channels,
                             out_channels - start, meanwhile);
#endif
  with_constant<WIDEST>(vectors, [&](auto count) {
    constexpr int V = decltype(count)::value;
    multiply_pixels<rows_of(V), V>(a, pixels, lanes, packed + start * lanes, depth, bias + start, to + start,
                                   out_channels, out_channels - start, meanwhile);
  });
}

}  // namespace
