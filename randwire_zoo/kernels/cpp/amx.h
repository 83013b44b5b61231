// Products of matrices in bf16 by the unit that Intel's processors have for them (AMX), where there is one: it takes
// tens of times as many multiply-adds as their vectors of pairs, which take half as many as those of float.
//
// The unit has eight registers ("tiles") of up to 16 rows of 64 bytes. Those of sums hold 16 by 16 floats. A product
// adds rows of 32 elements times 16 rows of 16 pairs, or, with half as many in each, of 16 times 8.
#pragma once

#include "vectors.h"

#if defined(__linux__) && defined(__AVX512BF16__) && (defined(__AMX_BF16__) || defined(__AMXBF16__))
#define RANDWIRE_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdint>

namespace {

#ifdef RANDWIRE_AMX
constexpr int64_t AMX_ROWS = 16;  // pixels, or outputs, of a tile
constexpr int64_t AMX_DEPTH = 2 * LANES;  // elements of a whole step, in pairs as wide as LANES floats

// Whether this process may use it: Linux wants to be asked, once for all threads, and can refuse.
bool amx_allowed() {
  static const bool allowed = [] {
    constexpr int request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  }();
  return allowed;
}

// The intrinsics of GCC 12 do not say what memory they read: what is written before would come too late, or never.
template <int TILE> ALWAYS void amx_zero() { asm volatile("tilezero %%tmm%c0" : : "i"(TILE)); }
template <int TILE> ALWAYS void amx_load(const void* from, int64_t row_bytes) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(TILE), "r"(from), "r"(row_bytes) : "memory");
}
template <int TILE> ALWAYS void amx_store(void* to, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(TILE), "r"(to), "r"(row_bytes) : "memory");
}
template <int SUM, int A, int B> ALWAYS void amx_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(A), "i"(B));
}

// The unit is this thread's, set up as above, as long as this lives. Whoever else uses it sets it up for himself.
class AmxUnit {
 public:
  // Numbers of tiles: 0 to 3 are sums, of two by two tiles; behind those of operands are those of half their depth.
  static constexpr int SUMS = 4, LEFT = 4, RIGHT = 5, HALF = 2;
  AmxUnit() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } to;
    for (int tile = 0; tile < 8; tile++) to.row_bytes[tile] = 64, to.rows[tile] = 16;
    to.row_bytes[LEFT + HALF] = 32;
    to.rows[RIGHT + HALF] = 8;
    asm volatile("ldtilecfg %0" : : "m"(to));
  }
  AmxUnit(const AmxUnit&) = delete;
  ~AmxUnit() { asm volatile("tilerelease"); }
};

// M by V sums begin, every row of them with these; or with zeros.
template <int M, int V> ALWAYS void amx_begin(const float* row) {
  amx_load<0>(row, 0);
  if constexpr (V == 2) amx_load<1>(row + LANES, 0);
  if constexpr (M == 2) amx_load<2>(row, 0);
  if constexpr (M == 2 && V == 2) amx_load<3>(row + LANES, 0);
}
template <int M, int V> ALWAYS void amx_begin() {
  amx_zero<0>();
  if constexpr (V == 2) amx_zero<1>();
  if constexpr (M == 2) amx_zero<2>();
  if constexpr (M == 2 && V == 2) amx_zero<3>();
}

// Where an operand's tiles lie, in elements from each other: two of them side by side, rows, and steps.
struct AmxOperand {
  const bfloat16* at;
  int64_t second, row, step;
};

// What one step adds to M by V sums: M tiles of the left times V of the right. A half takes as long as a whole.
template <int M, int V, bool IS_HALF> ALWAYS void amx_step(const AmxOperand& left, const AmxOperand& right, int64_t i) {
  constexpr int A = AmxUnit::LEFT + IS_HALF * AmxUnit::HALF, B = AmxUnit::RIGHT + IS_HALF * AmxUnit::HALF;
  constexpr int64_t bytes = sizeof(bfloat16);
  const bfloat16 *const a = left.at + i * left.step, *const b = right.at + i * right.step;
  amx_load<A>(a, left.row * bytes);
  amx_load<B>(b, right.row * bytes);
  amx_multiply<0, A, B>();
  if constexpr (V == 2) {
    amx_load<B>(b + right.second, right.row * bytes);
    amx_multiply<1, A, B>();
  }
  if constexpr (M == 2) {
    amx_load<A>(a + left.second, left.row * bytes);
    if constexpr (V == 2) {
      amx_multiply<3, A, B>();
      amx_load<B>(b, right.row * bytes);
    }
    amx_multiply<2, A, B>();
  }
}

// The same for as many steps as `blocks` of LANES elements take.
template <int M, int V> ALWAYS void amx_product(const AmxOperand& left, const AmxOperand& right, int64_t blocks) {
  for (int64_t i = 0; i < blocks / 2; i++) amx_step<M, V, false>(left, right, i);
  if (blocks % 2) amx_step<M, V, true>(left, right, blocks / 2);
}

// M by V sums, as they come out of the unit.
struct AmxSums {
  alignas(64) float data[AmxUnit::SUMS][AMX_ROWS][LANES];
  // run(row, vector, sum, n) for the V vectors of some rows, of which the last has `last` columns.
  template <int V, class Run> ALWAYS void for_each_row(int64_t rows, int64_t last, Run run) const {
    auto all = [&](int64_t n) INLINED {
      for (int64_t row = 0; row < rows; row++) {
        const auto& tiles = data + row / AMX_ROWS * 2;
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) run(row, v, load_all(tiles[v][row % AMX_ROWS]), v + 1 < V ? LANES : n);
      }
    };
    if (last == LANES) all(LANES);
    else all(last);
  }
  template <int M, int V> ALWAYS void take() {
    amx_store<0>(data[0], 64);
    if constexpr (V == 2) amx_store<1>(data[1], 64);
    if constexpr (M == 2) amx_store<2>(data[2], 64);
    if constexpr (M == 2 && V == 2) amx_store<3>(data[3], 64);
  }
};

// Calls run with M and V as constants: one or two tiles of rows, one or two of vectors.
template <class Run> ALWAYS void with_amx_tiles(int64_t rows, int64_t vectors, Run run) {
  with_constant<2>(rows > AMX_ROWS ? 2 : 1, [&](auto m) INLINED {
    with_constant<2>(vectors > 1 ? 2 : 1, [&](auto v) INLINED { run(m, v); });
  });
}
#else
constexpr int64_t AMX_ROWS = 1;
constexpr bool amx_allowed() { return false; }
#endif

// Whether matrices of E are multiplied by it.
template <class E> bool by_amx() { return PAIRED<E> > 1 && amx_allowed(); }
// How many pixels, or pairs of them, are read behind the last: what comes of them is not kept.
constexpr int64_t AMX_BEHIND = AMX_ROWS - 1;

}  // namespace
