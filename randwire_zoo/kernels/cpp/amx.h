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
constexpr int64_t AMX_ROWS = 16;   // pixels, or outputs, of a tile
constexpr int64_t AMX_DEPTH = 32;  // elements that a whole step multiplies
constexpr int SUMS = 4, LEFT = 4, RIGHT = 5, HALF = 2;  // numbers of tiles: 0 to 3 are sums; halves of both come behind

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

// Where an operand's tiles lie, in bytes from each other: two of them side by side, rows, and steps.
template <class E> struct AmxOperand {
  const E* at;
  int64_t second, row, step;
  AmxOperand from(int64_t steps) const {
    return {reinterpret_cast<const E*>(reinterpret_cast<const char*>(at) + steps * step), second, row, step};
  }
};

// Adds to M by V sums: M tiles of a times V of b, for some steps.
template <int M, int V, bool IN_HALVES>
ALWAYS void amx_product(const AmxOperand<bfloat16>& left, const AmxOperand<bfloat16>& right, int64_t steps) {
  constexpr int A = LEFT + IN_HALVES * HALF, B = RIGHT + IN_HALVES * HALF;
  const char *a = reinterpret_cast<const char*>(left.at), *b = reinterpret_cast<const char*>(right.at);
  for (int64_t i = 0; i < steps; i++, a += left.step, b += right.step) {
    amx_load<A>(a, left.row);
    amx_load<B>(b, right.row);
    amx_multiply<0, A, B>();
    if constexpr (V == 2) {
      amx_load<B>(b + right.second, right.row);
      amx_multiply<1, A, B>();
    }
    if constexpr (M == 2) {
      amx_load<A>(a + left.second, left.row);
      if constexpr (V == 2) {
        amx_multiply<3, A, B>();
        amx_load<B>(b, right.row);
      }
      amx_multiply<2, A, B>();
    }
  }
}

// M by V sums, as they come out of the unit.
struct AmxSums {
  alignas(64) float data[SUMS][AMX_ROWS][LANES];
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
