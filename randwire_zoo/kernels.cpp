// The passes of a RandWire stage over its data, fused, for the CPU: see `randwire_zoo/kernels.py` for what calls them.
//
// All tensors are dense NHWC ("channels_last"). Vectors of per-channel numbers are padded to a multiple of LANES with
// zeros, and so are the rows of data kept between two passes, so that inner loops have no remainder; tensors are not
// padded, and the last vector of a pixel is read and written in part. Sums are taken in float within an image and in
// double across images; each thread has its own, which are added in the order of the threads: the same number of
// threads gives the same bits.
#if defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

namespace {

#ifdef _OPENMP
int max_threads() { return omp_get_max_threads(); }
int num_threads() { return omp_get_num_threads(); }
int thread_number() { return omp_get_thread_num(); }
#else  // a compiler without OpenMP: one thread
int max_threads() { return 1; }
int num_threads() { return 1; }
int thread_number() { return 0; }
#endif

constexpr int64_t LANES = 16;
constexpr int64_t TILE_BYTES = 256 << 10;  // what may stand between the two convolutions of a node: half a second-level cache
typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IntVec __attribute__((vector_size(64)));
typedef uint32_t UIntVec __attribute__((vector_size(64)));
typedef uint16_t HalfVec __attribute__((vector_size(32)));
typedef float UnalignedVec __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t UnalignedHalfVec __attribute__((vector_size(32), aligned(2), may_alias));
struct bfloat16 { uint16_t bits; };


#define INLINED __attribute__((always_inline))
#define ALWAYS inline INLINED
#define NEVER_INLINED __attribute__((noinline))

ALWAYS Vec zeros() { return Vec{}; }
ALWAYS Vec load_all(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
ALWAYS Vec widen(HalfVec h) {
  return reinterpret_cast<Vec>(__builtin_convertvector(h, UIntVec) << 16);
}
ALWAYS Vec load_all(const bfloat16* p) { return widen(*reinterpret_cast<const UnalignedHalfVec*>(p)); }
ALWAYS void store_all(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
#ifdef __AVX512BF16__
ALWAYS HalfVec narrow(Vec v) { return reinterpret_cast<HalfVec>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(v))); }
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
ALWAYS Vec load_some(const float* p, int64_t n) {
  float lanes[LANES] = {};
  for (int64_t i = 0; i < n; i++) lanes[i] = p[i];
  return load_all(lanes);
}
ALWAYS void store_some(float* p, Vec v, int64_t n) {
  for (int64_t i = 0; i < n; i++) p[i] = v[i];
}
ALWAYS Vec load_some(const bfloat16* p, int64_t n) {
  bfloat16 lanes[LANES] = {};
  std::memcpy(lanes, p, n * sizeof(bfloat16));
  return load_all(lanes);
}
ALWAYS void store_some(bfloat16* p, Vec v, int64_t n) {
  HalfVec h = narrow(v);
  std::memcpy(p, &h, n * sizeof(bfloat16));
}
#endif

ALWAYS void convert(float x, float* to) { *to = x; }
ALWAYS void convert(bfloat16 x, bfloat16* to) { *to = x; }
ALWAYS void convert(bfloat16 x, float* to) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  std::memcpy(to, &bits, sizeof bits);
}

// A vector of n channels: all LANES of them, or, at a pixel's end, fewer.
template <class T> ALWAYS Vec load(const T* p, int64_t n) { return n == LANES ? load_all(p) : load_some(p, n); }
template <class T> ALWAYS void store(T* p, Vec v, int64_t n) { n == LANES ? store_all(p, v) : store_some(p, v, n); }

ALWAYS Vec relu(Vec v) { return zeros() > v ? zeros() : v; }  // NaN stays NaN
ALWAYS int64_t padded(int64_t channels) { return (channels + LANES - 1) / LANES * LANES; }

struct Shape {
  int64_t batch, height, width, channels, stride, dilation;
  int64_t out_height() const { return (height - 1) / stride + 1; }
  int64_t out_width() const { return (width - 1) / stride + 1; }
};

// Memory aligned to vectors; zeros, unless every element will be written before it is read.
template <class T> struct Buffer {
  T* data;
  Buffer(Buffer&& other) : data(other.data) { other.data = nullptr; }
  Buffer(const Buffer&) = delete;
  explicit Buffer(int64_t size, bool zeroed = true) {
    const size_t bytes = (size * sizeof(T) + 63) / 64 * 64;
    data = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (data == nullptr) throw std::bad_alloc();
    if (zeroed) std::memset(static_cast<void*>(data), 0, bytes);
  }
  ~Buffer() { std::free(data); }
};

// A weighted sum of tensors, each of which may stand before its BN: the sum of
// edge_weights[k] * (scales[k] * inputs[k] + shifts[k]), with scales and shifts per channel; null for 1 and 0.
template <class T> struct Sum {
  const T* const* inputs;
  int64_t count;
  const float* edge_weights;
  bool plain;  // no scales, no shifts
  Buffer<float> weights, bias;  // [count][lanes] and [lanes]: the same sum as bias + weights[k] * inputs[k]
  Sum(const T* const* inputs, int64_t count, const float* edge_weights, const float* const* scales,
      const float* const* shifts, int64_t channels)
      : inputs(inputs), count(count), edge_weights(edge_weights), plain(true), weights(count * padded(channels)),
        bias(padded(channels)) {
    for (int64_t k = 0; k < count; k++) plain = plain && !scales[k] && !shifts[k];
    for (int64_t k = 0; k < count; k++)
      for (int64_t c = 0; c < channels; c++) {
        weights.data[k * padded(channels) + c] = edge_weights[k] * (scales[k] ? scales[k][c] : 1.0f);
        if (shifts[k]) bias.data[c] += edge_weights[k] * shifts[k][c];
      }
  }
};

// A kernel [channels][3][3] as [9][lanes].
template <class T> Buffer<float> pack_kernel(const T* kernel, int64_t channels) {
  const int64_t lanes = padded(channels);
  Buffer<float> packed(9 * lanes);
  for (int64_t c = 0; c < channels; c++)
    for (int64_t tap = 0; tap < 9; tap++) convert(kernel[c * 9 + tap], packed.data + tap * lanes + c);
  return packed;
}

// One row of the weighted sum of the inputs, [width][channels], rectified if asked for, to [width][padded channels].
template <class T, int K, bool PLAIN>
ALWAYS void sum_row_of(const Sum<T>& sum_of, int64_t offset, int64_t width, int64_t channels, bool rectify, float* to) {
  const int64_t lanes = padded(channels);
  const int64_t k_end = K > 0 ? K : sum_of.count;
  const T* const* inputs = sum_of.inputs;
  const float *weights = sum_of.weights.data, *bias = sum_of.bias.data, *edge_weights = sum_of.edge_weights;
  for (int64_t x = 0; x < width; x++) {
    const int64_t pixel = offset + x * channels;
    auto run = [&](int64_t c, int64_t n) INLINED {
      Vec sum = PLAIN ? zeros() : load_all(bias + c);
      for (int64_t k = 0; k < k_end; k++)
        sum += (PLAIN ? zeros() + edge_weights[k] : load_all(weights + k * lanes + c)) * load(inputs[k] + pixel + c, n);
      store_all(to + x * lanes + c, rectify ? relu(sum) : sum);
    };
    int64_t c = 0;
    for (; c + LANES <= channels; c += LANES) run(c, LANES);
    if (c < channels) run(c, channels - c);
  }
}

template <class T>
void sum_row(const Sum<T>& sum_of, int64_t offset, int64_t width, int64_t channels, bool rectify, float* to) {
  auto run = [&](auto count) {  // unrolled for what most nodes have
    constexpr int K = decltype(count)::value;
    if (sum_of.plain) sum_row_of<T, K, true>(sum_of, offset, width, channels, rectify, to);
    else sum_row_of<T, K, false>(sum_of, offset, width, channels, rectify, to);
  };
  switch (sum_of.count) {
    case 1: return run(std::integral_constant<int, 1>());
    case 2: return run(std::integral_constant<int, 2>());
    case 3: return run(std::integral_constant<int, 3>());
    case 4: return run(std::integral_constant<int, 4>());
    default: return run(std::integral_constant<int, 0>());
  }
}

// The last rows of a picture that is computed row by row, with margins of `margin` zero pixels on both sides.
// Rows outside of the picture are zeros: the padding of the convolution.
struct Rows {
  int64_t height, pixel, margin, row, slots;
  Buffer<float> ring, outside;
  std::vector<int64_t> held;
  Rows(int64_t height, int64_t width, int64_t pixel, int64_t margin, int64_t slots)
      : height(height), pixel(pixel), margin(margin), row((width + 2 * margin) * pixel), slots(slots),
        ring(slots * row, false), outside(row), held(slots, -1) {
    for (int64_t slot = 0; slot < slots; slot++) {  // the margins, which nobody writes to
      std::fill_n(ring.data + slot * row, margin * pixel, 0.0f);
      std::fill_n(ring.data + (slot + 1) * row - margin * pixel, margin * pixel, 0.0f);
    }
  }
  // Where pixel -margin of row y lies, made by `make(y, to)` if it is not there yet.
  template <class Make> const float* get(int64_t y, Make make) {
    if (y < 0 || y >= height) return outside.data;
    const int64_t slot = y % slots;
    float* start = ring.data + slot * row;
    if (held[slot] != y) {
      make(y, start + margin * pixel);
      held[slot] = y;
    }
    return start;
  }
  void clear() { std::fill(held.begin(), held.end(), -1); }
};

// One output row of the depthwise 3x3 convolution for one vector of channels. U outputs at a time share loads.
template <class T, int S, int U>
ALWAYS int64_t depthwise_pixels(const float* const* rows, int64_t pixel, int64_t dilation, const Vec* w, T* to,
                                int64_t to_pixel, int64_t n, int64_t x, int64_t width) {
  for (; x + U <= width; x += U) {
    Vec sums[U];
    for (int u = 0; u < U; u++) sums[u] = zeros();
    for (int ky = 0; ky < 3; ky++) {
      const float* from = rows[ky] + x * S * pixel;
      if (S == 1 && dilation == 1) {
        Vec taps[U + 2];
        for (int u = 0; u < U + 2; u++) taps[u] = load_all(from + u * pixel);
        for (int kx = 0; kx < 3; kx++)
          for (int u = 0; u < U; u++) sums[u] += w[ky * 3 + kx] * taps[u + kx];
      } else {
        for (int kx = 0; kx < 3; kx++)
          for (int u = 0; u < U; u++) sums[u] += w[ky * 3 + kx] * load_all(from + (u * S + kx * dilation) * pixel);
      }
    }
    for (int u = 0; u < U; u++) store(to + (x + u) * to_pixel, sums[u], n);
  }
  return x;
}

template <class T, int S>
void depthwise_row(const float* const* rows, int64_t channels, int64_t dilation, const float* kernel, T* to,
                   int64_t to_pixel, int64_t width) {
  const int64_t lanes = padded(channels);
  for (int64_t c = 0; c < channels; c += LANES) {
    Vec w[9];
    for (int tap = 0; tap < 9; tap++) w[tap] = load_all(kernel + tap * lanes + c);
    const float* at[3] = {rows[0] + c, rows[1] + c, rows[2] + c};
    auto run = [&](int64_t n) INLINED {
      int64_t x = depthwise_pixels<T, S, 7>(at, lanes, dilation, w, to + c, to_pixel, n, 0, width);
      x = depthwise_pixels<T, S, 2>(at, lanes, dilation, w, to + c, to_pixel, n, x, width);
      depthwise_pixels<T, S, 1>(at, lanes, dilation, w, to + c, to_pixel, n, x, width);
    };
    if (c + LANES <= channels) run(LANES); else run(channels - c);
  }
}

// The 1x1 convolution: rows of pixels [pixels][lanes] times a matrix. The elements of both are bf16 where the tensors are
// and the processor multiplies pairs of bf16, otherwise float.
#ifdef __AVX512BF16__
template <class T> struct Operand { typedef T type; };
template <> struct Operand<bfloat16> { typedef bfloat16 type; };
constexpr int64_t step_of(const bfloat16*) { return 2; }
ALWAYS Vec multiply_add(Vec sum, const bfloat16* a, const bfloat16* b) {
  int32_t pair;
  std::memcpy(&pair, a, sizeof pair);
  return reinterpret_cast<Vec>(_mm512_dpbf16_ps(
      reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair)),
      reinterpret_cast<__m512bh>(_mm512_loadu_si512(b))));
}
#else
template <class T> struct Operand { typedef float type; };
#endif
constexpr int64_t step_of(const float*) { return 1; }
ALWAYS Vec multiply_add(Vec sum, const float* a, const float* b) { return sum + (zeros() + *a) * load_all(b); }

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

// A whole node: 1x1 convolution of the depthwise 3x3 convolution of relu(sum). Neither is written to memory: a tile of
// pixels goes through all of them while it is in the cache.
template <class T, int S>
void node(const Sum<T>& sum_of, const T* raw_kernel, const typename Operand<T>::type* packed, const T* raw_bias, T* out,
          Shape s, int64_t out_channels) {
  typedef typename Operand<T>::type E;
  const Buffer<float> kernel = pack_kernel(raw_kernel, s.channels);
  Buffer<float> bias(padded(out_channels));
  if (raw_bias)
    for (int64_t c = 0; c < out_channels; c++) convert(raw_bias[c], bias.data + c);
  const int64_t out_height = s.out_height(), out_width = s.out_width(), d = s.dilation, lanes = padded(s.channels);
  const int64_t all_rows = s.batch * out_height;
#pragma omp parallel
  {
    const int64_t threads = num_threads(), me = thread_number();
    Rows sums(s.height, s.width, lanes, d, 2 * d + 1);
    const int64_t begin = all_rows * me / threads, end = all_rows * (me + 1) / threads;
    const int64_t tile = std::min(std::max(TILE_BYTES / (lanes * int64_t(sizeof(E))), BLOCK), (end - begin) * out_width);
    Buffer<E> hidden((tile + out_width) * lanes);
    int64_t held = 0, done = begin * out_width, image = -1;
    for (int64_t row = begin; row < end; row++) {
      if (row / out_height != image) {
        image = row / out_height;
        sums.clear();
      }
      auto make = [&](int64_t y, float* to) {
        sum_row(sum_of, (image * s.height + y) * s.width * s.channels, s.width, s.channels, true, to);
      };
      const float* rows[3];
      for (int ky = 0; ky < 3; ky++) rows[ky] = sums.get((row % out_height) * S + (ky - 1) * d, make);
      depthwise_row<E, S>(rows, s.channels, d, kernel.data, hidden.data + held * lanes, lanes, out_width);
      held += out_width;
      if (held < tile && row + 1 < end) continue;
      // Whole blocks; what is left over waits for the next rows.
      const int64_t now = row + 1 < end ? held / BLOCK * BLOCK : held;
      multiply(hidden.data, now, s.channels, packed, bias.data, out + done * out_channels, out_channels);
      std::memmove(static_cast<void*>(hidden.data), hidden.data + now * lanes, (held - now) * lanes * sizeof(E));
      done += now;
      held -= now;
    }
  }
}

// Adds the threads' [rows][lanes] to [rows][channels].
std::vector<double> reduce(const std::vector<std::vector<double>>& threads, int64_t rows, int64_t channels) {
  std::vector<double> to(rows * channels);
  for (int64_t row = 0; row < rows; row++)
    for (int64_t c = 0; c < channels; c++)
      for (const auto& thread : threads) if (!thread.empty()) to[row * channels + c] += thread[row * padded(channels) + c];
  return to;
}

// Runs `pass(begin, end)` on parts of [0, pixels), a few thousand values at a time for each thread.
template <class Pass> void over_pixels(int64_t pixels, int64_t channels, Pass pass) {
  const int64_t step = std::max<int64_t>(8192 / channels, 1);
#pragma omp parallel for schedule(static)
  for (int64_t begin = 0; begin < pixels; begin += step) pass(begin, std::min(begin + step, pixels));
}

// out = sum: the mean of a stage's outputs.
template <class T> void sum(const Sum<T>& sum_of, T* out, int64_t pixels, int64_t channels) {
  const int64_t lanes = padded(channels), count = sum_of.count;
  const T* const* inputs = sum_of.inputs;
  const float *weights = sum_of.weights.data, *bias = sum_of.bias.data;
  over_pixels(pixels, channels, [&](int64_t begin, int64_t end) {
    for (int64_t x = begin; x < end; x++)
      for (int64_t c = 0; c < channels; c += LANES) {
        const int64_t n = std::min(LANES, channels - c);
        Vec sum = load_all(bias + c);
        for (int64_t k = 0; k < count; k++)
          sum += load_all(weights + k * lanes + c) * load(inputs[k] + x * channels + c, n);
        store(out + x * channels + c, sum, n);
      }
  });
}

// Per channel, over all pixels, [2][channels]: the sums of x and of x * y, for the gradients of BN; or, where y is null,
// those of d = x - origin and of d * d, for mean and variance. The origin is about the mean, and the squares of up to 64
// pixels are taken about their own mean before they are moved to the origin in double: float holds nothing but deviations.
template <class T>
std::vector<double> moments(const T* x, const T* y, const float* origin, int64_t pixels, int64_t channels) {
  const int64_t lanes = padded(channels), step = 64;
  const int threads = max_threads();
  std::vector<std::vector<double>> all(threads);
#pragma omp parallel num_threads(threads)
  {
    std::vector<double> total(2 * lanes, 0.0);
#pragma omp for schedule(static)
    for (int64_t begin = 0; begin < pixels; begin += step) {
      const int64_t end = std::min(begin + step, pixels);
      const float count = static_cast<float>(end - begin);
      for (int64_t c = 0; c < channels; c += LANES) {
        const int64_t n = std::min(LANES, channels - c);
        Vec one = zeros(), two = zeros();
        if (y == nullptr) {
          const Vec zero = load_all(origin + c);
          for (int64_t i = begin; i < end; i++) one += load(x + i * channels + c, n) - zero;
          const Vec mean = one / count;
          for (int64_t i = begin; i < end; i++) {
            const Vec deviation = load(x + i * channels + c, n) - zero - mean;
            two += deviation * deviation;
          }
        } else {
          for (int64_t i = begin; i < end; i++) {
            const Vec value = load(x + i * channels + c, n);
            one += value;
            two += value * load(y + i * channels + c, n);
          }
        }
        for (int64_t lane = 0; lane < n; lane++) {
          const double sum = one[lane];
          total[c + lane] += sum;
          total[lanes + c + lane] += two[lane] + (y == nullptr ? sum * sum / count : 0.0);
        }
      }
    }
    all[thread_number()] = total;
  }
  return reduce(all, 2, channels);
}

// BN from the batch's own statistics, as scale * x + shift: mean and biased variance too, all [channels].
template <class T>
void batch_norm(const T* x, const float* weight, const float* bias, double eps, float* mean, float* variance,
                float* scale, float* shift, int64_t pixels, int64_t channels) {
  const int64_t first = std::min<int64_t>(pixels, 64);
  Buffer<float> origin(padded(channels));
  for (int64_t c = 0; c < channels; c += LANES) {
    const int64_t n = std::min(LANES, channels - c);
    Vec sum = zeros();
    for (int64_t i = 0; i < first; i++) sum += load(x + i * channels + c, n);
    store(origin.data + c, sum / static_cast<float>(first), n);
  }
  const std::vector<double> sums = moments<T>(x, nullptr, origin.data, pixels, channels);
  for (int64_t c = 0; c < channels; c++) {
    const double shifted = sums[c] / pixels, m = origin.data[c] + shifted;
    double v = sums[channels + c] / pixels - shifted * shifted;
    if (v < 0) v = 0;  // by rounding; NaN stays NaN
    const double a = weight[c] / std::sqrt(v + eps);
    mean[c] = m;
    variance[c] = v;
    scale[c] = a;
    shift[c] = bias[c] - m * a;
  }
}

// A whole stage, as `randwire_zoo/plans.py` defines it; addresses of what is left out are null.
struct StageArguments {
  int64_t batch, height, width, in_channels, channels, num_nodes, num_outputs, stride, input_dilation, dilation;
  const int64_t *sources, *in_degrees, *outputs;
  const float* edge_weights;
  const void *x, *const *depthwise, *const *packed, *const *biases;
  const float *norm_weight, *norm_bias, *given_mean, *given_variance;
  const double* eps;
  const uint8_t* of_batch;
  void* const* nodes;  // of each node; a node's memory may be that of another which nobody reads any more
  float *mean, *variance;
  void* out;  // null where the only output node is the stage's output
  Shape input() const { return {batch, height, width, in_channels, stride, input_dilation}; }
  Shape inner() const { return {batch, input().out_height(), input().out_width(), channels, 1, dilation}; }
};

// The constants of a node's BN.
void normalisation(const StageArguments& s, int64_t i, const float* mean, const float* variance, float* scale,
                   float* shift) {
  for (int64_t c = 0; c < s.channels; c++) {
    const double a = s.norm_weight[i * s.channels + c] / std::sqrt(variance[c] + s.eps[i]);
    scale[c] = a;
    shift[c] = s.norm_bias[i * s.channels + c] - mean[c] * a;
  }
}

// The sources of a node, as a sum.
template <class T> struct Terms {
  std::vector<const T*> inputs;
  std::vector<const float*> scales, shifts;
  std::vector<float> weights;
  void clear() { inputs.clear(); scales.clear(); shifts.clear(); weights.clear(); }
  void add(const StageArguments& s, int64_t source, float weight, const float* scale, const float* shift) {
    const bool plain = source < 0 || s.norm_weight == nullptr;
    inputs.push_back(static_cast<const T*>(source < 0 ? s.x : s.nodes[source]));
    scales.push_back(plain ? nullptr : scale + source * s.channels);
    shifts.push_back(plain ? nullptr : shift + source * s.channels);
    weights.push_back(weight);
  }
  Sum<T> sum(int64_t channels) const {
    return Sum<T>(inputs.data(), inputs.size(), weights.data(), scales.data(), shifts.data(), channels);
  }
};

template <class T> void stage(const StageArguments& s) {
  typedef typename Operand<T>::type E;
  std::vector<float> scale(s.num_nodes * s.channels), shift(s.num_nodes * s.channels);
  Terms<T> terms;
  const Shape input = s.input(), inner = s.inner();
  const int64_t pixels = s.batch * inner.height * inner.width;
  const int64_t* next_source = s.sources;
  const float* next_weight = s.edge_weights;
  for (int64_t i = 0; i < s.num_nodes; i++) {
    const bool reads_input = *next_source < 0;
    const Shape& shape = reads_input ? input : inner;
    terms.clear();
    for (int64_t k = 0; k < s.in_degrees[i]; k++)
      terms.add(s, *next_source++, s.in_degrees[i] > 1 ? *next_weight++ : 1.0f, scale.data(), shift.data());
    T* out = static_cast<T*>(s.nodes[i]);
    (reads_input && s.stride == 2 ? node<T, 2> : node<T, 1>)(
        terms.sum(shape.channels), static_cast<const T*>(s.depthwise[i]), static_cast<const E*>(s.packed[i]),
        s.biases ? static_cast<const T*>(s.biases[i]) : nullptr, out, shape, s.channels);
    if (s.norm_weight == nullptr) continue;
    const int64_t row = i * s.channels;
    if (s.of_batch[i]) {
      batch_norm(out, s.norm_weight + row, s.norm_bias + row, s.eps[i], s.mean + row, s.variance + row, &scale[row],
                 &shift[row], pixels, s.channels);
    } else {
      std::copy_n(s.given_mean + row, s.channels, s.mean + row);
      std::copy_n(s.given_variance + row, s.channels, s.variance + row);
      normalisation(s, i, s.mean + row, s.variance + row, &scale[row], &shift[row]);
    }
  }
  if (s.out == nullptr) return;
  terms.clear();
  for (int64_t i = 0; i < s.num_outputs; i++) terms.add(s, s.outputs[i], 1.0f / s.num_outputs, scale.data(), shift.data());
  sum(terms.sum(s.channels), static_cast<T*>(s.out), pixels, s.channels);
}

#include "node_backward.h"
#include "stage_backward.h"

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
  extern "C" void stage_##NAME(const StageArguments* arguments) { stage<T>(*arguments); }                             \
  extern "C" void stage_backward_##NAME(const StageArguments* arguments, const StageGradients* gradients) {            \
    StageBackward<T>(*arguments, *gradients).run();                                                                  \
  }

// How many threads the passes take; without OpenMP it stays one.
extern "C" void use_threads(int64_t count) {
#ifdef _OPENMP
  omp_set_num_threads(static_cast<int>(count));
#endif
}

// A sample of each of `count` arrays: up to 16 of their words, evenly spaced, in one number.
extern "C" void samples(const uint8_t* const* data, const int64_t* bytes, int64_t count, uint64_t* out) {
  for (int64_t k = 0; k < count; k++) {
    const int64_t words = bytes[k] / 2, taken = std::min<int64_t>(words, 16);
    uint64_t hash = 14695981039346656037u;
    for (int64_t i = 0; i < taken; i++) {
      uint16_t word;
      std::memcpy(&word, data[k] + 2 * (words * i / taken), 2);
      hash = (hash ^ word) * 1099511628211u;
    }
    out[k] = hash;
  }
}

EXPORT(float32, float)
EXPORT(bfloat16, bfloat16)
