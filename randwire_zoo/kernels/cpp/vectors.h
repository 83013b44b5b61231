// Vectors of LANES numbers in float, from and to tensors in fp32 and bf16, and what else depends on the processor.
//
// GCC's and clang's vector types become whatever instructions there are, as long as a vector fits a register: those of
// wider types live in memory, and every operation reads and writes them there. So LANES depends on the processor. Only
// conversions from and to bf16, parts of vectors, ReLU and products of pairs of bf16 name instructions.
#pragma once

#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wpsabi"  // how vectors are passed: no function that takes one is called from elsewhere
#endif

#ifdef __AVX__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

// Of AVX-512 there are 32 registers, otherwise at least 16.
#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
constexpr bool MANY_REGISTERS = true;
#elif defined(__AVX__)
constexpr int64_t LANES = 8;
constexpr bool MANY_REGISTERS = false;
#else
constexpr int64_t LANES = 4;
constexpr bool MANY_REGISTERS = false;
#endif
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));
typedef uint32_t UIntVec __attribute__((vector_size(4 * LANES)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * LANES)));
typedef float UnalignedVec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t UnalignedHalfVec __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
struct bfloat16 { uint16_t bits; };

#define INLINED __attribute__((always_inline))
#define ALWAYS inline INLINED
#define NEVER_INLINED __attribute__((noinline))

ALWAYS Vec zeros() { return Vec{}; }
ALWAYS Vec all_of(float x) { return x - zeros(); }  // x + 0 would be another number where x is -0, hence an instruction
ALWAYS Vec load_all(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
#ifdef __AVX512F__
ALWAYS Vec widen(HalfVec h) {  // GCC makes six instructions of the form below
  return reinterpret_cast<Vec>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(h)), 16));
}
#else
ALWAYS Vec widen(HalfVec h) { return reinterpret_cast<Vec>(__builtin_convertvector(h, UIntVec) << 16); }
#endif
ALWAYS Vec load_all(const bfloat16* p) { return widen(*reinterpret_cast<const UnalignedHalfVec*>(p)); }
ALWAYS void store_all(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
#ifdef __AVX512BF16__
ALWAYS HalfVec narrow(Vec v) { return reinterpret_cast<HalfVec>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(v))); }
ALWAYS __m512i narrow_two(Vec low, Vec high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low)));
}
#else
ALWAYS HalfVec narrow(Vec v) {  // to nearest, ties to even; NaN stays NaN
  UIntVec u = reinterpret_cast<UIntVec>(v);
  UIntVec rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  UIntVec nan = reinterpret_cast<UIntVec>(v != v);
  return __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), HalfVec);
}
#endif
ALWAYS void store_all(bfloat16* p, Vec v) { *reinterpret_cast<UnalignedHalfVec*>(p) = narrow(v); }

#if defined(__AVX512BW__) && defined(__AVX512VL__)
ALWAYS Vec load_some(const float* p, int64_t n) {
  return reinterpret_cast<Vec>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
}
ALWAYS void store_some(float* p, Vec v, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), reinterpret_cast<__m512>(v));
}
ALWAYS Vec load_some(const bfloat16* p, int64_t n) {
  return widen(reinterpret_cast<HalfVec>(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p)));
}
ALWAYS void store_some(bfloat16* p, Vec v, int64_t n) {
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1), reinterpret_cast<__m256i>(narrow(v)));
}
#else
// Fewer than LANES elements in pieces of powers of two, which is a few instructions with branches that are always the
// same in a loop over pixels.
template <class T, int SIZE = LANES / 2> ALWAYS void copy_some(T* to, const T* from, int64_t n) {
  if (n & SIZE) {
    std::memcpy(static_cast<void*>(to), from, SIZE * sizeof(T));
    to += SIZE, from += SIZE;
  }
  if constexpr (SIZE > 1) copy_some<T, SIZE / 2>(to, from, n);
}
#if defined(__AVX2__) && !defined(__AVX512F__)
ALWAYS Vec load_some(const float* p, int64_t n) {
  static constexpr int32_t mask[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1};
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mask + LANES - n));
  return reinterpret_cast<Vec>(_mm256_maskload_ps(p, first));
}
#else
ALWAYS Vec load_some(const float* p, int64_t n) {
  float lanes[LANES] = {};
  copy_some(lanes, p, n);
  return load_all(lanes);
}
#endif
ALWAYS void store_some(float* p, Vec v, int64_t n) {
  float lanes[LANES];
  store_all(lanes, v);
  copy_some(p, lanes, n);
}
ALWAYS Vec load_some(const bfloat16* p, int64_t n) {
  bfloat16 lanes[LANES] = {};
  copy_some(lanes, p, n);
  return load_all(lanes);
}
ALWAYS void store_some(bfloat16* p, Vec v, int64_t n) {
  bfloat16 lanes[LANES];
  store_all(lanes, v);
  copy_some(p, lanes, n);
}
#endif

// Calls run with COUNT as a constant: 1 to MOST.
template <int MOST, class Run> ALWAYS void with_constant(int64_t count, Run run) {
  if constexpr (MOST > 1)
    if (count < MOST) return with_constant<MOST - 1>(count, run);
  run(std::integral_constant<int, MOST>());
}

ALWAYS void convert(float x, float* to) { *to = x; }
ALWAYS void convert(bfloat16 x, bfloat16* to) { *to = x; }
ALWAYS void convert(bfloat16 x, float* to) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  std::memcpy(to, &bits, sizeof bits);
}

// A vector of n channels: all LANES of them, or, at a pixel's end, fewer.
template <class T> ALWAYS Vec load(const T* p, int64_t n) { return n == LANES ? load_all(p) : load_some(p, n); }
template <class T> ALWAYS void store(T* p, Vec v, int64_t n) { n == LANES ? store_all(p, v) : store_some(p, v, n); }

// NaN stays NaN.
#if defined(__AVX512BW__) && defined(__AVX512VL__)
ALWAYS Vec relu(Vec v) {
  return reinterpret_cast<Vec>(_mm512_max_ps(_mm512_setzero_ps(), reinterpret_cast<__m512>(v)));  // 2nd, if either
}
#elif defined(__AVX__) && !defined(__AVX512F__)
ALWAYS Vec relu(Vec v) {
  return reinterpret_cast<Vec>(_mm256_max_ps(_mm256_setzero_ps(), reinterpret_cast<__m256>(v)));
}
#else
ALWAYS Vec relu(Vec v) { return zeros() > v ? zeros() : v; }
#endif
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
ALWAYS int64_t padded(int64_t channels) { return ceil_div(channels, LANES) * LANES; }

// What matrices are multiplied in: bf16 where tensors are and the processor multiplies pairs of bf16, otherwise float.
#ifdef __AVX512BF16__
template <class T> struct Operand { typedef T type; };
template <> struct Operand<bfloat16> { typedef bfloat16 type; };
constexpr int64_t step_of(const bfloat16*) { return 2; }
ALWAYS Vec multiply_add(Vec sum, const bfloat16* a, Vec b) {
  int32_t pair;
  std::memcpy(&pair, a, sizeof pair);
  return reinterpret_cast<Vec>(_mm512_dpbf16_ps(
      reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair)),
      reinterpret_cast<__m512bh>(b)));
}
#else
template <class T> struct Operand { typedef float type; };
#endif
constexpr int64_t step_of(const float*) { return 1; }
// How many neighbours, of pixels or of channels, one multiplication takes.
template <class E> constexpr int64_t PAIRED = step_of(static_cast<E*>(nullptr));
ALWAYS Vec multiply_add(Vec sum, const float* a, Vec b) { return sum + all_of(*a) * b; }

// A vector of an operand that is multiplied several times: with few registers GCC would rather load it each time, and
// the loads would take longer than the products.
template <class E> ALWAYS Vec load_operand(const E* from) {
  Vec v = load_all(reinterpret_cast<const float*>(from));
#if defined(__x86_64__) && !defined(__AVX512F__)
  asm("" : "+x"(v));
#endif
  return v;
}

}  // namespace
