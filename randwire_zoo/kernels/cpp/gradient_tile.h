// The last step of a node's backward pass, tile by tile: what one thread keeps while it goes through its tiles.
//
// The gradient of the 1x1 convolution's input goes through the depthwise convolution and the ReLU while it is in the
// second cache. While its product keeps the processor busy, what the edges read is brought there.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "blocks.h"
#include "memory.h"
#include "node_gradient.h"
#include "vectors.h"

namespace {

template <class T> class GradientTile {
  typedef typename Operand<T>::type E;
  static constexpr int64_t step = PAIRED<E>;

  const NodeSizes<E> s;
  const NodeGradient<T, E>* of = nullptr;
  Tiling tiling;               // of this node
  const int64_t in_slot;       // elements of a row of one block of grads, padding included
  Buffer<float> grads;         // [slots + 1][block][padded width][LANES]: rows of hidden's gradient, one for waste
  Buffer<float> outside;       // a row of zeros
  Buffer<float> row_grad;      // [padded width][LANES]: of one row of one block, where there is a stride
  Buffer<float> grad_of_sum;   // [block][pixels][LANES]: of some rows
  std::vector<int32_t> places;  // of a tile's pixels in grads
  Buffer<float> kernel_now, dot_now, total_now;  // sums of a tile

 public:
  // For nodes with at most `most` sources.
  GradientTile(const NodeSizes<E>& s, int64_t most)
      : s(s), tiling(s.tiling(1, sizeof(T))), in_slot((s.out_width + 2 * s.d) * LANES),
        grads((tiling.slots + 1) * s.in_blocks * in_slot), outside(in_slot), row_grad((s.width + 2 * s.d) * LANES),
        grad_of_sum(s.in_blocks * tiling.some_rows * s.width * LANES, false), kernel_now(9 * s.lanes),
        dot_now(most * s.lanes), total_now(s.lanes) {}

  // Task `task` of a group of images from `begin` on, of whose sums and inner gradients this goes on from.
  void run(const NodeGradient<T, E>& of, const Tiling& tiling, int64_t begin, int64_t images, int64_t task,
           const E* sums, const E* inner, const GradientSums& to) {
    this->of = &of, this->tiling = tiling;
    if (begin == 0) clear(to.data, to.size());
    if (tiling.rows == s.height) {
      const int64_t i0 = task * tiling.images;
      tile(begin, i0, std::min(i0 + tiling.images, images), 0, s.height, 0, sums, inner, to);
      return;
    }
    const int64_t image = task / tiling.bands, band = task % tiling.bands, tiles = ceil_div(s.height, tiling.rows);
    int64_t done = 0;  // up to where the image's rows of hidden's gradient are there
    for (int64_t t = tiles * band / tiling.bands; t < tiles * (band + 1) / tiling.bands; t++) {
      const int64_t y0 = t * tiling.rows, y1 = std::min(y0 + tiling.rows, s.height);
      done = tile(begin, image, image + 1, y0, y1, done, sums, inner, to);
    }
  }

 private:
  int64_t tile(int64_t begin, int64_t i0, int64_t i1, int64_t y0, int64_t y1, int64_t done, const E* sums,
               const E* inner, const GradientSums& to) {
    // Rows of output that these rows of input have gone to.
    const int64_t r0 = std::max(ceil_div(std::max<int64_t>(y0 - s.d, 0), s.stride), done);
    const int64_t r1 = std::min((y1 - 1 + s.d) / s.stride + 1, s.out_height);
    // What the dots of this tile read comes from afar while the product keeps the processor busy.
    Fetch fetch(*of, ((begin + i0) * s.height + y0) * s.width * s.in_channels,
                ((i1 - i0 - 1) * s.height + y1 - y0) * s.width * s.in_channels * int64_t(sizeof(T)));
    multiply_tile(i0, i1, r0, r1, inner, fetch);
    for (int64_t image = i0; image < i1; image++)
      for (int64_t y = y0; y < y1; y += tiling.some_rows) {
        const int64_t end = std::min(y + tiling.some_rows, y1);
        for (int64_t block = 0; block < s.in_blocks; block++) {
          const E* image_sums = sums + image * s.sum_image() + block * s.row;
          if (s.stride == 1) {
            kernel_gradient<1>(image_sums, image - i0, y, end, block);
            gradient_of_sum<1>(image_sums, image - i0, y, end, block);
          } else {
            kernel_gradient<2>(image_sums, image - i0, ceil_div(y, 2), ceil_div(end, 2), block);
            gradient_of_sum<2>(image_sums, image - i0, y, end, block);
          }
        }
        leave_gradient(((begin + image) * s.height + y) * s.width, (end - y) * s.width);
      }
    flush(to);
    return r1;
  }

  void flush(const GradientSums& to) {
    auto add = [](Buffer<float>& now, double* sums, int64_t size) {
      for (int64_t i = 0; i < size; i++) sums[i] += now.data[i];
      clear(now.data, size);
    };
    add(kernel_now, to.data, 9 * s.lanes);
    add(total_now, to.data + GradientSums::TOTAL * s.lanes, s.lanes);
    add(dot_now, to.data + GradientSums::DOTS * s.lanes, of->sum_of.count * s.lanes);
  }

  // Brings a tile's sources, and where the gradient goes, into the second cache, some lines at a time.
  struct Fetch {
    const NodeGradient<T, E>& of;
    const int64_t start, bytes;  // in elements and bytes, from the beginning of each tensor
    int64_t done = 0, at_once = 0;
    Fetch(const NodeGradient<T, E>& of, int64_t start, int64_t bytes) : of(of), start(start), bytes(bytes) {}
    void spread_over(int64_t times) { at_once = ceil_div(ceil_div(bytes, 64), times) * 64; }
    ALWAYS void some() {
      const int64_t end = std::min(done + at_once, bytes);
      if (of.dots)
        for (int64_t k = 0; k < of.sum_of.count; k++)
          for (int64_t at = done; at < end; at += 64)
            __builtin_prefetch(reinterpret_cast<const char*>(of.sum_of.inputs[k] + start) + at, 0, 2);
      if (of.sum_grad)
        for (int64_t at = done; at < end; at += 64)
          __builtin_prefetch(reinterpret_cast<const char*>(of.sum_grad + start) + at, 1, 2);
      done = end;
    }
  };

  int64_t slot(int64_t image_in_tile, int64_t r) const {
    return tiling.rows == s.height ? image_in_tile * s.out_height + r : r % tiling.slots;
  }

  // Row r of hidden's gradient, from its padding on.
  const float* grad_row(int64_t block, int64_t image_in_tile, int64_t r) const {
    if (r < 0 || r >= s.out_height) return outside.data;
    return grads.data + (slot(image_in_tile, r) * s.in_blocks + block) * in_slot;
  }

  // Rows r0 to r1 of the gradient of hidden, of images i0 to i1: inner times the matrix.
  NEVER_INLINED void multiply_tile(int64_t i0, int64_t i1, int64_t r0, int64_t r1, const E* inner, Fetch& fetch) {
    if (r0 >= r1) return;
    const int64_t first = i0 * s.pixels + r0 * s.out_width;
    places.clear();
    for (int64_t image = 0; image < i1 - i0; image++) {
      for (int64_t r = r0; r < r1; r++)
        for (int64_t x = 0, to = slot(image, r) * s.in_blocks * in_slot + s.d * LANES; x < s.out_width; x++)
          places.push_back(static_cast<int32_t>(to + x * LANES));
      if (i1 - i0 > 1)  // what images are filled up with
        places.resize((image + 1) * s.pixels, static_cast<int32_t>(tiling.slots * s.in_blocks * in_slot));
    }
    const int64_t size = places.size();
    const int64_t panels = ceil_div(s.in_blocks, PRODUCT_VECTORS);
#ifdef RANDWIRE_AMX
    if constexpr (step > 1)
      if (by_amx<E>()) return multiply_tile_by_amx(first, inner, fetch);
#endif
    fetch.spread_over(panels * ceil_div(size, product_rows_of(PRODUCT_VECTORS)));
    const int64_t depth = s.depth(), whole_blocks = depth / LANES, rest = depth % LANES;
    for (int64_t panel = 0; panel < panels; panel++) {
      const Panel its(s.in_blocks, panel, PRODUCT_VECTORS);
      const E* b_start = of->packed + its.start * LANES * depth;
      with_constant<PRODUCT_VECTORS>(its.width, [&](auto vectors) {
        constexpr int V = decltype(vectors)::value;
        int64_t p = 0;
        auto rows_at_once = [&](auto rows) {
          constexpr int M = decltype(rows)::value;
          for (; p + M <= size; p += M) {
            fetch.some();
            Vec sums[M][V];
#pragma GCC unroll 16
            for (int m = 0; m < M; m++)
#pragma GCC unroll 4
              for (int v = 0; v < V; v++) sums[m][v] = zeros();
            const E *a = inner + (first + p) * LANES, *b = b_start;
            for (int64_t block = 0; block < whole_blocks; block++, a += s.next)
#pragma GCC unroll 1
              for (int64_t i = 0; i < LANES; i += step, b += V * LANES * step)
                outer_product(sums, a + i, LANES, b, LANES * step);
            for (int64_t i = 0; i < rest; i += step, b += V * LANES * step)
              outer_product(sums, a + i, LANES, b, LANES * step);
            float* to = grads.data + its.start * in_slot;
#pragma GCC unroll 16
            for (int m = 0; m < M; m++)
#pragma GCC unroll 4
              for (int v = 0; v < V; v++) store_all(to + v * in_slot + places[p + m], sums[m][v]);
          }
        };
        rows_at_once(std::integral_constant<int, product_rows_of(V)>());
        rows_at_once(std::integral_constant<int, product_rows_of(V) / 2>());
        rows_at_once(std::integral_constant<int, product_rows_of(V) / 4>());
        rows_at_once(std::integral_constant<int, 1>());
      });
    }
  }

#ifdef RANDWIRE_AMX
  // The same for the pixels of `places`, which are those from `first` on.
  NEVER_INLINED void multiply_tile_by_amx(int64_t first, const E* inner, Fetch& fetch) {
    const int64_t size = places.size(), panels = ceil_div(s.in_blocks, PRODUCT_VECTORS);
    fetch.spread_over(panels * ceil_div(size, 2 * AMX_ROWS));
    AmxUnit unit;
    AmxSums sums;
    for (int64_t panel = 0; panel < panels; panel++) {
      const Panel its(s.in_blocks, panel, PRODUCT_VECTORS);
      const E* const packed = of->packed + its.start * LANES * s.depth();
      for (int64_t p = 0; p < size; p += 2 * AMX_ROWS) {
        fetch.some();
        const int64_t rows = std::min(2 * AMX_ROWS, size - p);
        for (int64_t v = 0; v < its.width; v += 2)
          with_amx_tiles(rows, its.width - v, [&](auto m, auto count) INLINED {
            constexpr int M = decltype(m)::value, V = decltype(count)::value;
            amx_begin<M, V>();
            amx_product<M, V>({inner + (first + p) * AMX_DEPTH, AMX_ROWS * AMX_DEPTH, AMX_DEPTH, 2 * s.next},
                              {packed + v * LANES * step, LANES * step, its.width * LANES * step,
                               AMX_DEPTH * its.width * LANES}, s.out_blocks);
            sums.template take<M, V>();
            float* const to = grads.data + (its.start + v) * in_slot;
            const int32_t* const place = places.data() + p;
            sums.template for_each_row<V>(rows, LANES, [&](int64_t row, int u, Vec sum, int64_t) INLINED {
              store_all(to + u * in_slot + place[row], sum);
            });
          });
      }
    }
  }
#endif

  // The kernel's gradient from rows r0 to r1 of output.
  template <int S> NEVER_INLINED
  void kernel_gradient(const E* image_sums, int64_t image_in_tile, int64_t r0, int64_t r1, int64_t block) {
    float* const now = kernel_now.data + block * LANES;
    const int64_t lanes = s.lanes;
    Vec taps[9];
    for (int tap = 0; tap < 9; tap++) taps[tap] = load_all(now + tap * lanes);
    auto all_rows = [&](auto near, auto most) INLINED {
      constexpr bool NEAR = decltype(near)::value;
      for (int64_t r = r0; r < r1; r++) {
        const float* grad = grad_row(block, image_in_tile, r) + s.d * LANES;
        const E* rows[3];
        for (int ky = 0; ky < 3; ky++) rows[ky] = image_sums + (r * S + ky * s.d) * s.sum_row();
        int64_t x = kernel_pixels<S, NEAR, decltype(most)::value>(rows, grad, 0, taps);
        if constexpr (NEAR) x = kernel_pixels<S, NEAR, 2>(rows, grad, x, taps);
        kernel_pixels<S, NEAR, 1>(rows, grad, x, taps);
      }
    };
    if constexpr (S == 1) {
      if (s.d > 1) all_rows(std::false_type(), std::integral_constant<int, 2>());
      else if (s.out_width % 7 == 0) all_rows(std::true_type(), std::integral_constant<int, 7>());
      else all_rows(std::true_type(), std::integral_constant<int, 4>());
    } else {
      all_rows(std::false_type(), std::integral_constant<int, 2>());
    }
    for (int tap = 0; tap < 9; tap++) store_all(now + tap * lanes, taps[tap]);
  }

  // Adds what U pixels at a time of a row give; NEAR where neighbouring taps share what they load.
  template <int S, bool NEAR, int U>
  ALWAYS int64_t kernel_pixels(const E* const* rows, const float* grad, int64_t x, Vec (&taps)[9]) const {
    for (; x + U <= s.out_width; x += U) {
      Vec g[U];
#pragma GCC unroll 7
      for (int u = 0; u < U; u++) g[u] = load_all(grad + (x + u) * LANES);
#pragma GCC unroll 3
      for (int ky = 0; ky < 3; ky++) {
        const E* from = rows[ky] + x * S * LANES;
        if constexpr (NEAR) {
          Vec at[U + 2];
#pragma GCC unroll 9
          for (int u = 0; u < U + 2; u++) at[u] = load_all(from + u * LANES);
#pragma GCC unroll 7
          for (int u = 0; u < U; u++)
#pragma GCC unroll 3
            for (int kx = 0; kx < 3; kx++) taps[ky * 3 + kx] += g[u] * at[u + kx];
        } else {
#pragma GCC unroll 7
          for (int u = 0; u < U; u++)
#pragma GCC unroll 3
            for (int kx = 0; kx < 3; kx++) taps[ky * 3 + kx] += g[u] * load_all(from + (u * S + kx * s.d) * LANES);
        }
      }
    }
    return x;
  }

  // Rows y0 to y1 of the gradient of the sum, before the ReLU.
  template <int S> NEVER_INLINED
  void gradient_of_sum(const E* image_sums, int64_t image_in_tile, int64_t y0, int64_t y1, int64_t block) {
    const int64_t c = block * LANES, lanes = s.lanes;
    Vec w[9];  // of the transposed convolution
    for (int tap = 0; tap < 9; tap++) w[tap] = load_all(of->kernel + (S == 1 ? 8 - tap : tap) * lanes + c);
    Vec total = load_all(total_now.data + c);
    for (int64_t y = y0; y < y1; y++) {
      const E* sum = image_sums + (y + s.d) * s.sum_row() + s.d * LANES;
      float* const to = grad_of_sum.data + (block * tiling.some_rows + y - y0) * s.width * LANES;
      auto rectify = [&](int64_t x, Vec value) INLINED {
        const Vec masked = load_all(sum + x * LANES) <= 0 ? zeros() : value;  // as torch treats NaN
        total += masked;
        store_all(to + x * LANES, masked);
      };
      if constexpr (S == 1) {
        const float* rows[3];
        for (int ky = 0; ky < 3; ky++) rows[ky] = grad_row(block, image_in_tile, y + (ky - 1) * s.d);
        convolve_row<1>(rows, s.d, w, s.width, rectify);
      } else if (s.d == 1) {
        const float* const here = grad_row(block, image_in_tile, y / 2) + LANES;
        if (y % 2) {
          const float* const rows[] = {grad_row(block, image_in_tile, y / 2 + 1) + LANES, here};
          const Vec* const taps[] = {w, w + 6};
          transposed_pairs<2>(rows, taps, rectify);
        } else {
          const Vec* const taps[] = {w + 3};
          transposed_pairs<1>(&here, taps, rectify);
        }
      } else {
        transposed_row(block, image_in_tile, y, w);
        for (int64_t x = 0; x < s.width; x++) rectify(x, load_all(row_grad.data + (s.d + x) * LANES));
      }
    }
    store_all(total_now.data + c, total);
  }

  // A row of the gradient of a convolution with stride 2, from the rows of the output that it has gone to, with taps by
  // which it has: one for pixels of even number, two for the others.
  template <int ROWS, class Emit>
  ALWAYS void transposed_pairs(const float* const* rows, const Vec* const* w, Emit emit) const {
    for (int64_t x = 0; x < s.width; x += 2) {
      Vec even = zeros(), odd = zeros();
#pragma GCC unroll 2
      for (int i = 0; i < ROWS; i++) {
        const float* const from = rows[i] + x / 2 * LANES;
        const Vec here = load_all(from);
        even += w[i][1] * here;
        odd += w[i][2] * here + w[i][0] * load_all(from + LANES);
      }
      emit(x, even);
      if (x + 1 < s.width) emit(x + 1, odd);
    }
  }

  // Writes it, and takes its dots with the sources: in the order of memory.
  NEVER_INLINED void leave_gradient(int64_t first_pixel, int64_t size) {
    const int64_t first = first_pixel * s.in_channels, lanes = s.lanes, next = tiling.some_rows * s.width * LANES;
    T* const to = of->sum_grad ? of->sum_grad + first : nullptr;
    const int64_t dots = of->dots ? of->sum_of.count : 0;
    with_constant<6>(dots + 1, [&](auto constant) INLINED {
      constexpr int K = decltype(constant)::value - 1, MOST = 5;  // sources; those above are a loop
      const T* inputs[K + 1];  // which nothing that is written to can change
#pragma GCC unroll 5
      for (int k = 0; k < K; k++) inputs[k] = of->sum_of.inputs[k] + first;
      float* const dots_at = dot_now.data;
      const bool add = of->add;
      auto pixels_at_once = [&](auto constant, int64_t x) INLINED {
        constexpr int U = decltype(constant)::value;
        for (; x + U <= size; x += U) {
          const float* g = grad_of_sum.data + x * LANES;
          auto block = [&](int64_t c, int64_t n) INLINED {
            const int64_t at = x * s.in_channels + c;
            Vec value[U];
#pragma GCC unroll 4
            for (int u = 0; u < U; u++) value[u] = load_all(g + u * LANES);
            auto take_dot = [&](int64_t k, const T* input) INLINED {
              float* const dot_at = dots_at + k * lanes + c;
              Vec dot = load_all(dot_at);
#pragma GCC unroll 4
              for (int u = 0; u < U; u++) dot += value[u] * load(input + at + u * s.in_channels, n);
              store_all(dot_at, dot);
            };
#pragma GCC unroll 5
            for (int k = 0; k < K; k++) take_dot(k, inputs[k]);
            if constexpr (K == MOST)
              for (int64_t k = K; k < dots; k++) take_dot(k, of->sum_of.inputs[k] + first);
            if (to)
#pragma GCC unroll 4
              for (int u = 0; u < U; u++) {
                T* const pixel = to + at + u * s.in_channels;
                store(pixel, add ? value[u] + load(pixel, n) : value[u], n);
              }
            g += next;
          };
          int64_t c = 0;
          for (; c + LANES <= s.in_channels; c += LANES) block(c, LANES);
          if (c < s.in_channels) block(c, s.in_channels - c);
        }
        return x;
      };
      const int64_t x = pixels_at_once(std::integral_constant<int, 4>(), 0);
      pixels_at_once(std::integral_constant<int, 1>(), x);
    });
  }

  // Row y of the gradient of a convolution with stride and dilation, to row_grad from pixel d on.
  void transposed_row(int64_t block, int64_t image_in_tile, int64_t y, const Vec* w) {
    float* const g = row_grad.data;
    std::fill(g, g + (s.width + 2 * s.d) * LANES, 0.0f);
    for (int ky = 0; ky < 3; ky++) {
      const int64_t at = y - (ky - 1) * s.d;
      if (at < 0 || at % s.stride != 0 || at / s.stride >= s.out_height) continue;
      const float* from = grad_row(block, image_in_tile, at / s.stride) + s.d * LANES;
      for (int kx = 0; kx < 3; kx++)
        for (int64_t x = 0; x < s.out_width; x++) {
          float* to = g + (x * s.stride + kx * s.d) * LANES;
          store_all(to, load_all(to) + w[ky * 3 + kx] * load_all(from + x * LANES));
        }
    }
  }
};

}  // namespace
