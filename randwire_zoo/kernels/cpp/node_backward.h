// The backward pass of nodes of one kind: from the gradient behind BN to those of matrix, kernel and sources.
//
// The batch is taken in groups of images that stay in the caches. For each group, in this order:
//   1. the sums of the sources are computed again, and `inner`, the gradient before BN;
//   2. tile by tile, the gradient of the 1x1 convolution's input goes through the depthwise convolution and the ReLU;
//      and `hidden`, the depthwise convolution of the sums, is computed again;
//   3. the gradient of the 1x1 convolution's matrix is inner^T hidden.
// What comes out is the gradient of the sum: one tensor, from which each source takes what it gets by its edge, when
// its own turn comes. That is one tensor written a node, where adding to each source's would read and write one an
// edge.
//
// Each step is a number of tasks, any of which any thread may do. The first and the third step of two groups are done
// together: what the one writes, the other does not read.
#pragma once

#include <algorithm>
#include <cstdint>

#include "blocks.h"
#include "depthwise.h"
#include "memory.h"
#include "node_gradient.h"
#include "sums.h"
#include "vectors.h"

namespace {

template <class T> class NodeBackward {
  typedef typename Operand<T>::type E;
  static constexpr int64_t step = PAIRED<E>;
  static constexpr int64_t SOME = 4096;  // vectors that make a task of the first step, about

 public:
  const NodeSizes<E> s;

 private:
  Buffer<E> sums, hidden;
  Buffer<E> inner[2], pairs[2];  // of every other group; pairs of pixels, and only where there are such
  const int64_t rows_at_once, pixels_at_once, hidden_rows;

 public:
  explicit NodeBackward(const NodeSizes<E>& s)
      : s(s), sums(s.group * s.sum_image(), false), hidden(s.in_blocks * s.next, false),
        inner{Buffer<E>(s.inner_size(), false), Buffer<E>(step > 1 ? 0 : s.inner_size(), false)},
        pairs{Buffer<E>(step > 1 ? s.out_blocks * s.next : 0, false),
              Buffer<E>(step > 1 ? s.out_blocks * s.next : 0, false)},
        rows_at_once(std::max<int64_t>(SOME / (s.width * s.in_blocks), 1)),
        pixels_at_once(std::max<int64_t>(SOME / s.out_blocks / step * step, 16)),
        // Some rows at a time, which end with whole pairs and stay in the first cache.
        hidden_rows(std::max<int64_t>(128 / s.out_width, 1) * step) {}

  // Tasks of the steps for a number of images.
  int64_t sum_tasks(int64_t images) const { return ceil_div(images * s.height, rows_at_once); }
  int64_t inner_tasks(int64_t images) const { return images * ceil_div(s.out_height * s.out_width, pixels_at_once); }
  int64_t tile_tasks(const Tiling& tiling, int64_t images) const {
    return tiling.rows == s.height ? ceil_div(images, tiling.images) : images * tiling.bands;
  }
  int64_t hidden_tasks(int64_t images) const { return images * ceil_div(s.out_height, hidden_rows); }
  int64_t matrix_tasks() const { return matrix_panels() * matrix_parts(); }
  int64_t groups() const { return ceil_div(s.batch, s.group); }
  int64_t images(int64_t group) const { return std::min(s.group, s.batch - group * s.group); }

  const E* sums_data() const { return sums.data; }
  const E* inner_data(int64_t group) const { return inner[step > 1 ? 0 : group % 2].data; }

  // The padding of an image's sums: zeros for good.
  void clear_padding(int64_t image) {
    E* at = sums.data + image * s.sum_image();
    for (int64_t y = -s.d; y < s.height + s.d; y++) {
      if (y < 0 || y >= s.height) {
        clear(at, s.sum_row());
        at += s.sum_row();
      } else {
        for (int64_t block = 0; block < s.in_blocks; block++, at += s.row) {
          clear(at, s.d * LANES);
          clear(at + s.row - s.d * LANES, s.d * LANES);
        }
      }
    }
  }

  NEVER_INLINED void compute_sums(const NodeGradient<T, E>& of, int64_t group, int64_t task) {
    const int64_t end = std::min((task + 1) * rows_at_once, images(group) * s.height);
    for (int64_t at = task * rows_at_once; at < end; at++) {
      const int64_t image = at / s.height, y = at % s.height;
      E* const start = sums.data + image * s.sum_image() + (y + s.d) * s.sum_row() + s.d * LANES;
      over_sum<1>(of.sum_of, (group * s.group * s.height + at) * s.width, s.width, s.in_channels,
                  [&, row = s.row](int64_t x, int64_t block, const Vec (&value)[1]) INLINED {
                    store_all(start + block * row + x * LANES, relu(value[0]));
                  });
    }
  }

  // The gradient before BN, pixel by pixel and, for the gradient of the matrix, in pairs of pixels.
  NEVER_INLINED void compute_inner(const NodeGradient<T, E>& of, int64_t group, int64_t task, bool for_matrix) {
    const int64_t real = s.out_height * s.out_width, parts = ceil_div(real, pixels_at_once), next = s.next;
    const int64_t image = task / parts, first = task % parts * pixels_at_once;
    const int64_t size = std::min(pixels_at_once, real - first), whole = size / step * step;
    const int64_t start = image * s.pixels + first;
    const int64_t pixel = (group * s.group + image) * real + first;
    E *const plain = const_cast<E*>(inner_data(group)), *const paired = for_matrix ? pairs[group % 2].data : nullptr;
    auto some_pixels = [&, amx = by_amx<E>()](int64_t x, int64_t block, const Vec (&value)[step]) INLINED {
      const int64_t at = block * next + (start + x) * LANES;
      if (amx) {
        for (int64_t u = 0; u < step; u++) store_all(plain + s.in_whole_steps(block, start + x + u), value[u]);
      } else {
        store_plain(plain + at, value);
      }
      if (step > 1 && paired) store_step(paired + at, value[0], value[step - 1]);
    };
    auto last_pixel = [&](int64_t, int64_t block, const Vec (&value)[1]) INLINED {  // of an odd number
      if constexpr (step > 1) some_pixels(whole, block, {value[0], zeros()});
    };
    over_sum<step>(of.inner, pixel, whole, s.out_channels, some_pixels);
    over_sum<1>(of.inner, pixel + whole, size - whole, s.out_channels, last_pixel);
  }

  // The depthwise convolution of the sums, in pairs of pixels; `plain` is the thread's own memory for it.
  int64_t plain_size() const { return step > 1 ? (hidden_rows * s.out_width + step) * LANES : 0; }
  void compute_hidden(const NodeGradient<T, E>& of, int64_t group, int64_t task, float* plain) {
    if (s.stride == 1) compute_hidden_of<1>(of, group, task, plain);
    else compute_hidden_of<2>(of, group, task, plain);
  }

  // matrix_grad[out][in] (+)= inner^T hidden over the pixels of a group: some rows of it, and some columns.
  NEVER_INLINED void add_matrix_gradient(int64_t group, int64_t task, float* matrix_grad) {
    const int64_t next = s.next, in_channels = s.in_channels, depth = images(group) * s.pixels / step;
    const int64_t panel = task / matrix_parts(), part = task % matrix_parts(), parts = matrix_parts();
#ifdef RANDWIRE_AMX
    if constexpr (step > 1)
      if (by_amx<E>()) return add_matrix_gradient_by_amx(group, panel, part, matrix_grad);
#endif
    const E *const from = (step > 1 ? pairs : inner)[group % 2].data;
    constexpr int64_t near = 192;  // steps at a time: a panel's elements stay in the first caches
    const Panel its(s.in_blocks, panel, TILE_VECTORS);
    const int64_t start = its.start, width = its.width;
    const int64_t last = std::min(LANES, in_channels - (start + width - 1) * LANES);  // columns of the last vector
    for (int64_t begin = 0; begin < depth; begin += near) {
      const int64_t end = std::min(begin + near, depth);
      const bool add = group > 0 || begin > 0;
      for (int64_t block = s.out_blocks * part / parts; block < s.out_blocks * (part + 1) / parts; block++)
        for (int64_t o = 0; o < LANES && block * LANES + o < s.out_channels; o += TILE_ROWS)
          with_constant<TILE_VECTORS>(width, [&](auto constant) {
            constexpr int M = TILE_ROWS, V = decltype(constant)::value;
            float* to = matrix_grad + (block * LANES + o) * in_channels + start * LANES;
            Vec totals[M][V];
#pragma GCC unroll 16
            for (int m = 0; m < M; m++)
#pragma GCC unroll 4
              for (int v = 0; v < V; v++) totals[m][v] = zeros();
            const E* a = from + block * next + begin * LANES * step + o * step;
            const E* b = hidden.data + start * next + begin * LANES * step;
            for (int64_t i = begin; i < end; i++, a += LANES * step, b += LANES * step)
              outer_product(totals, a, step, b, next);
            const int64_t rows = s.out_channels - block * LANES - o;  // that there are
#pragma GCC unroll 16
            for (int m = 0; m < M; m++)
#pragma GCC unroll 4
              for (int v = 0; v < V; v++) {
                if (m >= rows) continue;
                float* at = to + m * in_channels + v * LANES;
                const int64_t n = v + 1 < V ? LANES : last;
                store(at, add ? load(at, n) + totals[m][v] : totals[m][v], n);
              }
          });
    }
  }

 private:
  // How a matrix's gradient is cut into tasks. By AMX a part's own elements are laid out again for each panel, so that
  // there are several only where there are more threads than parts.
  int64_t matrix_panels() const {
    if (!by_amx<E>()) return ceil_div(s.in_blocks, TILE_VECTORS);
    return std::clamp<int64_t>(ceil_div(TASKS * s.threads, ceil_div(s.out_blocks, 2)), 1, ceil_div(s.in_blocks, 2));
  }
  int64_t matrix_parts() const {
    if (by_amx<E>()) return ceil_div(s.out_blocks, 2);
    return std::clamp<int64_t>(ceil_div(TASKS * s.threads, matrix_panels()), 1, s.out_blocks);
  }

#ifdef RANDWIRE_AMX
  // One or two blocks of rows, and a panel of columns.
  NEVER_INLINED void add_matrix_gradient_by_amx(int64_t group, int64_t panel, int64_t part, float* matrix_grad) {
    constexpr int64_t near = 12;  // tiles at a time, each of AMX_ROWS pairs of pixels: they stay in the first cache
    constexpr int64_t TILE = AMX_ROWS * LANES * step;
    const int64_t depth = images(group) * s.pixels / step, in_channels = s.in_channels;
    const int64_t block = 2 * part, blocks = std::min<int64_t>(2, s.out_blocks - block);
    const int64_t rows = std::min(blocks * LANES, s.out_channels - block * LANES), panels = matrix_panels();
    const int64_t start = s.in_blocks * panel / panels, stop = s.in_blocks * (panel + 1) / panels;
    alignas(64) E rows_of[2 * near * TILE];  // [block][tile][output][pairs]
    AmxUnit unit;
    AmxSums sums;
    for (int64_t begin = 0; begin < depth; begin += near * AMX_ROWS) {
      const int64_t pairs_now = std::min(near * AMX_ROWS, depth - begin), tiles = ceil_div(pairs_now, AMX_ROWS);
      const bool add = group > 0 || begin > 0;
      for (int64_t b = 0; b < blocks; b++)
        for (int64_t tile = 0; tile < tiles; tile++) {
          const E* const from = pairs[group % 2].data + (block + b) * s.next + (begin + tile * AMX_ROWS) * LANES * step;
          Vec square[LANES];
#pragma GCC unroll 16
          for (int64_t pair = 0; pair < LANES; pair++)
            square[pair] = tile * AMX_ROWS + pair < pairs_now ? load_operand(from + pair * LANES * step) : zeros();
          transpose<LANES / 2>(square);
#pragma GCC unroll 16
          for (int64_t o = 0; o < LANES; o++)
            store_all(reinterpret_cast<float*>(rows_of + (b * near + tile) * TILE + o * LANES * step), square[o]);
        }
      for (int64_t in = start; in < stop; in += 2)
        with_amx_tiles(rows, stop - in, [&](auto m, auto count) INLINED {
          constexpr int M = decltype(m)::value, V = decltype(count)::value;
          amx_begin<M, V>();
          amx_product<M, V>({rows_of, near * TILE, AMX_DEPTH, TILE},
                            {hidden.data + in * s.next + begin * LANES * step, s.next, AMX_DEPTH, TILE}, 2 * tiles);
          sums.template take<M, V>();
          float* const to = matrix_grad + block * LANES * in_channels + in * LANES;
          const int64_t last = std::min(LANES, in_channels - (in + V - 1) * LANES);  // columns of the last vector
          sums.template for_each_row<V>(rows, last, [&](int64_t row, int u, Vec sum, int64_t n) INLINED {
            float* const at = to + row * in_channels + u * LANES;
            store(at, add ? load(at, n) + sum : sum, n);
          });
        });
    }
  }
#endif

  template <int S> NEVER_INLINED
  void compute_hidden_of(const NodeGradient<T, E>& of, int64_t group, int64_t task, float* plain) {
    const int64_t parts = ceil_div(s.out_height, hidden_rows), image = task / parts;
    const int64_t begin = task % parts * hidden_rows, end = std::min(begin + hidden_rows, s.out_height);
    const int64_t out_width = s.out_width, d = s.d;
    const bool last = image + 1 == images(group);
    for (int64_t block = 0; block < s.in_blocks; block++) {
      const E* image_sums = sums.data + image * s.sum_image() + block * s.row;
      E* to = hidden.data + block * s.next + (image * s.pixels + begin * out_width) * LANES;
      Vec w[9];
      for (int tap = 0; tap < 9; tap++) w[tap] = load_all(of.kernel + tap * s.lanes + block * LANES);
      for (int64_t y = begin; y < end; y++) {
        const E* from[3];
        for (int ky = 0; ky < 3; ky++) from[ky] = image_sums + (y * S + ky * d) * s.sum_row();
        const int64_t start = (y - begin) * out_width * LANES;
        convolve_row<S>(from, d, w, out_width, [&](int64_t x, Vec value) INLINED {
          if constexpr (step > 1) store_all(plain + start + x * LANES, value);
          else store_all(to + start + x * LANES, value);
        });
      }
      if constexpr (step > 1) {
        const int64_t size = (end - begin) * out_width;
        if (size % step) clear(plain + size * LANES, LANES);
        for (int64_t x = 0; x < size; x += step)
          store_step(to + x * LANES, load_all(plain + x * LANES), load_all(plain + (x + 1) * LANES));
        // What is multiplied behind the last pair, by zeros.
        if (by_amx<E>() && last && end == s.out_height)
          clear(to + ceil_div(size, step) * step * LANES, AMX_BEHIND * step * LANES);
      }
    }
  }
};

}  // namespace
