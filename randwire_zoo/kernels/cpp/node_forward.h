// The forward pass of a node, one thread's share of it: ReLU of a sum, depthwise convolution, 1x1 convolution.
//
// Neither the sum nor what is between the convolutions is written to memory: a tile of pixels goes through all of them
// while it is in the second cache, and while its products keep the processor busy, what the next tile reads is brought
// there.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "depthwise.h"
#include "memory.h"
#include "moments.h"
#include "pointwise.h"
#include "sums.h"
#include "vectors.h"

namespace {

constexpr int64_t TILE_BYTES = 512 << 10;  // of a tile: what is read, what is in between and what is written
constexpr int64_t FEWEST_PIXELS_AT_ONCE = 140;  // of a tile, as the matrix of wide nodes is read once for each

// A node's constants, as its pass reads them, and where it puts its output.
template <class T> struct NodeTask {
  typedef typename Operand<T>::type E;
  const Sum<T>& sum_of;
  const float* kernel;  // [9][lanes]
  const E* matrix;      // from `pack_rows`
  const float* bias;    // [out lanes]
  T* out;
  Shape shape;
  int64_t out_channels;
  Moments* moments;  // of the output, or null
};

// What a thread keeps for nodes of one shape: the last rows of a sum.
struct LastRows {
  Rows rows;
  explicit LastRows(const Shape& s) : rows(s.height, s.width, padded(s.channels), s.dilation, 2 * s.dilation + 1) {}
};

// Brings what a sum reads into the second cache, some lines at a time.
template <class T> class Fetch {
  const Sum<T>& of;
  int64_t done = 0, end = 0, at_once = 0;  // bytes from the inputs' beginnings

 public:
  explicit Fetch(const Sum<T>& of) : of(of) {}
  void start(int64_t begin, int64_t elements, int64_t calls) {
    done = begin * sizeof(T) / 64 * 64;
    end = done + elements * sizeof(T);
    at_once = (elements * sizeof(T) / 64 + calls) / calls * 64;
  }
  ALWAYS void operator()() {
    const int64_t next = std::min(done + at_once, end);
    for (int64_t k = 0; k < of.count; k++)
      for (int64_t at = done; at < next; at += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(of.inputs[k]) + at, 0, 2);
    done = next;
  }
};

// Output row `row` of all images' rows, of what is between the convolutions, to [width][lanes].
template <class T, int S>
ALWAYS void hidden_row(const NodeTask<T>& task, int64_t row, Rows& sums, typename Operand<T>::type* to) {
  const Shape& s = task.shape;
  const int64_t image = row / s.out_height(), y = row % s.out_height();
  const float* rows[3];
  for (int ky = 0; ky < 3; ky++)
    rows[ky] = sums.get(y * S + (ky - 1) * s.dilation, [&](int64_t y, float* to) INLINED {
      sum_row(task.sum_of, (image * s.height + y) * s.width * s.channels, s.width, s.channels, true, to);
    });
  depthwise_row<typename Operand<T>::type, S>(rows, s.channels, s.dilation, task.kernel, to, padded(s.channels),
                                              s.out_width());
}

// Rows begin to end of all images' rows, through everything.
template <class T, int S>
void node_rows(const NodeTask<T>& task, int64_t begin, int64_t end, LastRows& last) {
  typedef typename Operand<T>::type E;
  const Shape& s = task.shape;
  const int64_t out_height = s.out_height(), out_width = s.out_width(), lanes = padded(s.channels);
  const int64_t read = task.sum_of.count * S * S * s.channels;
  const int64_t pixel_bytes = sizeof(T) * (read + task.out_channels) + sizeof(E) * lanes;
  const int64_t most = std::max(TILE_BYTES / pixel_bytes, FEWEST_PIXELS_AT_ONCE);
  const int64_t tile = std::min(most, (end - begin) * out_width);
  const int64_t panels = panels_of(task.out_channels), block = block_of<E>();
  Buffer<E> hidden((tile + out_width + AMX_BEHIND) * lanes, false);
  Fetch<T> fetch(task.sum_of);
  int64_t held = 0, done = begin * out_width;
  for (int64_t row = begin; row < end; row++) {
    if (row == begin || row % out_height == 0) last.rows.clear();
    hidden_row<T, S>(task, row, last.rows, hidden.data + held * lanes);
    held += out_width;
    if (held < tile && row + 1 < end) continue;
    // Whole blocks; what is left over waits for the next rows.
    const int64_t now = row + 1 < end ? held / block * block : held;
    if (row + 1 < end) {  // the next tile's rows of the sum that are not there yet
      const int64_t next_image = (row + 1) / out_height, y = (row + 1) % out_height;
      const int64_t next = next_image * s.height + (y > 0 ? y * S + s.dilation : 0);
      const int64_t rows = std::min(end - row - 1, (tile + out_width - 1) / out_width) * S;
      fetch.start(next * s.width * s.channels, rows * s.width * s.channels, blocks_of<E>(now, task.out_channels));
    }
    T* const out = task.out + done * task.out_channels;
    for (int64_t panel = 0; panel < panels; panel++)
      multiply_panel(hidden.data, now, s.channels, task.matrix, task.bias, out, task.out_channels, panel, fetch);
    if (task.moments) task.moments->add(out, now, task.out_channels, 0, task.out_channels);
    std::memmove(static_cast<void*>(hidden.data), hidden.data + now * lanes, (held - now) * lanes * sizeof(E));
    done += now;
    held -= now;
  }
}

// The same for few pixels and a large matrix, in two steps. First rows begin to end of what is between convolutions;
template <class T, int S>
void hidden_rows(const NodeTask<T>& task, int64_t begin, int64_t end, typename Operand<T>::type* hidden,
                 LastRows& last) {
  const Shape& s = task.shape;
  for (int64_t row = begin; row < end; row++) {
    if (row == begin || row % s.out_height() == 0) last.rows.clear();
    hidden_row<T, S>(task, row, last.rows, hidden + row * s.out_width() * padded(s.channels));
  }
}

// then all pixels times a part of the matrix.
template <class T>
void multiply_part(const NodeTask<T>& task, const typename Operand<T>::type* hidden, int64_t part, int64_t parts) {
  const Shape& s = task.shape;
  const int64_t lanes = padded(s.channels), pixels = s.batch * s.out_height() * s.out_width();
  // Pixels of one panel, then those of the next, in units of vectors: each part has as many.
  const int64_t all = padded(task.out_channels) / LANES * pixels;
  const int64_t from = all * part / parts, to = all * (part + 1) / parts;
  const int64_t block = block_of<typename Operand<T>::type>();
  auto nothing = [] {};
  for (int64_t panel = 0; panel < panels_of(task.out_channels); panel++) {
    const int64_t start = panel_start(task.out_channels, panel), next = panel_start(task.out_channels, panel + 1);
    const int64_t vectors = (next - start) / LANES;
    auto pixel = [&](int64_t unit) {  // whole blocks, but for the last
      const int64_t at = std::clamp<int64_t>((unit - start / LANES * pixels) / vectors, 0, pixels);
      return at < pixels ? at / block * block : pixels;
    };
    const int64_t begin = pixel(from), end = pixel(to);
    if (begin >= end) continue;
    T* const out = task.out + begin * task.out_channels;
    multiply_panel(hidden + begin * lanes, end - begin, s.channels, task.matrix, task.bias, out, task.out_channels,
                   panel, nothing);
    if (task.moments) task.moments->add(out, end - begin, task.out_channels, start, std::min(next, task.out_channels));
  }
}

}  // namespace
