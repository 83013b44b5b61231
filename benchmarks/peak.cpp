// What one core can multiply at most: loops of multiply-adds on registers alone, enough of them at once to hide latency.
// Every function does `rounds` rounds and returns how many multiply-adds that were; 0 if the processor has no such unit.
#include <cstdint>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#if (defined(__AMX_BF16__) || defined(__AMXBF16__)) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

// Two units of four to five cycles' latency need ten sums at a time. Names and no array, as GCC leaves arrays in memory.
#define TWELVE(DO) DO(s0) DO(s1) DO(s2) DO(s3) DO(s4) DO(s5) DO(s6) DO(s7) DO(s8) DO(s9) DO(s10) DO(s11)
#if defined(__x86_64__)
#define KEEP(sum) asm volatile("" : "+x"(sum));  // stays in its register, and is not computed in closed form
#else
#define KEEP(sum) asm volatile("" : "+w"(sum));
#endif

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));

extern "C" int64_t fma_fp32(int64_t rounds) {
  const Vector a = Vector{} + 0.999f, b = Vector{} + 1e-3f;
#define START(sum) Vector sum = b;
#define STEP(sum) sum = sum * a + b; KEEP(sum)
  TWELVE(START)
  for (int64_t round = 0; round < rounds; ++round) { TWELVE(STEP) }
#undef START
#undef STEP
  return rounds * 12 * (kBytes / 4);
}

extern "C" int64_t dot_bf16(int64_t rounds) {
#if defined(__AVX512BF16__)
  const __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f80);  // ones
#define START(sum) __m512 sum = _mm512_setzero_ps();
#define STEP(sum) sum = _mm512_dpbf16_ps(sum, a, a); KEEP(sum)
  TWELVE(START)
  for (int64_t round = 0; round < rounds; ++round) { TWELVE(STEP) }
#undef START
#undef STEP
  return rounds * 12 * 32;
#else
  return 0 * rounds;
#endif
}

extern "C" int64_t tile_bf16(int64_t rounds) {
#if (defined(__AMX_BF16__) || defined(__AMXBF16__)) && defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData)) return 0;
  alignas(64) uint8_t config[64] = {1};  // palette 1: eight tiles of 16 rows of 64 bytes
  for (int tile = 0; tile < 8; ++tile) config[16 + 2 * tile] = 64, config[48 + tile] = 16;
  // GCC takes _tile_loadconfig to read eight bytes, and would leave out what is written to the others.
  asm volatile("" : : "r"(config) : "memory");
  _tile_loadconfig(config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return rounds * 4 * 16 * 16 * 32;
#else
  return 0 * rounds;
#endif
}
