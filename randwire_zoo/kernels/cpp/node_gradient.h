// What a node's backward pass is about: sizes, what it is given and where its results go.
#pragma once

#include <algorithm>
#include <cstdint>

#include "blocks.h"
#include "depthwise.h"
#include "memory.h"
#include "sums.h"
#include "team.h"
#include "vectors.h"

namespace {

constexpr int64_t GROUP_BYTES = 1 << 20;  // of images between the steps, for each thread: about its second cache
constexpr int64_t GRADIENT_TILE_BYTES = 512 << 10;  // of a tile's sources, and of the gradient of their sum
constexpr int64_t FEWEST_PIXELS = 96;  // of a tile: the matrix comes from the last cache once for all of them

// How a node's images are cut into tiles, and these into tasks: some images, or some rows of one.
struct Tiling {
  int64_t images, rows;
  int64_t slots;  // rows of hidden's gradient that a tile keeps
  int64_t some_rows;  // that go through the depthwise convolution and the edges at a time
  int64_t bands;  // of an image, each a task; 1 where a tile is some whole images
};

// The sizes of all nodes of one kind: those that read the stage's input, or the others.
template <class E> struct NodeSizes {
  static constexpr int64_t step = PAIRED<E>;
  int64_t batch, height, width, in_channels, out_channels, stride, d;
  int64_t in_blocks, out_blocks, lanes, out_height, out_width;
  int64_t pixels;  // of an output image, in whole pairs
  int64_t row;     // elements of a row of sums of one block, padding included
  int64_t group;   // images at a time
  int64_t next;    // elements from block to block of them
  int threads;

  NodeSizes(const Shape& s, int64_t out_channels, int threads)
      : batch(s.batch), height(s.height), width(s.width), in_channels(s.channels), out_channels(out_channels),
        stride(s.stride), d(s.dilation), in_blocks(padded(s.channels) / LANES),
        out_blocks(padded(out_channels) / LANES), lanes(padded(s.channels)), out_height(s.out_height()),
        out_width(s.out_width()), pixels(ceil_div(out_height * out_width, step) * step), row((s.width + 2 * d) * LANES),
        threads(threads) {
    // A group's data, about: not much more than the second caches hold.
    const int64_t image_bytes = sizeof(E) * LANES *
        (in_blocks * ((height + 2 * d) * (width + 2 * d) + pixels) + out_blocks * pixels * step);
    group = std::max<int64_t>(threads * GROUP_BYTES / image_bytes, 1);
    group = std::min(ceil_div(group, threads) * threads, batch);
    // A cache line more than the data: maps have powers of two of pixels, and blocks that lie a multiple of 4 KiB apart
    // would all have the same few places in the first cache.
    next = group * pixels * LANES + 64 / int64_t(sizeof(E));
    if (by_amx<E>()) next += AMX_BEHIND * step * LANES;
  }

  // Of the gradient before BN; for AMX, where in it a pixel of a block lies: two blocks side by side are a whole step.
  int64_t inner_size() const { return by_amx<E>() ? (out_blocks + 1) / 2 * 2 * next : out_blocks * next; }
  int64_t in_whole_steps(int64_t block, int64_t pixel) const {
    return block / 2 * 2 * next + pixel * 2 * LANES + block % 2 * LANES;
  }
  int64_t sum_row() const { return in_blocks * row; }  // of all blocks, one after the other
  int64_t sum_image() const { return (height + 2 * d) * sum_row(); }
  int64_t depth() const { return product_depth<E>(out_channels); }  // of the product with the matrix

  // For a node with `count` sources whose elements have `bytes`. It is largest for a single one.
  Tiling tiling(int64_t count, int64_t bytes) const {
    const int64_t pixel_bytes = LANES * in_blocks * ((count + 1) * bytes + 2 * sizeof(E));
    const int64_t tile = std::max<int64_t>(GRADIENT_TILE_BYTES / pixel_bytes, FEWEST_PIXELS);
    Tiling to{1, std::clamp<int64_t>(tile / width, 1, height), 0, 0, 1};
    if (to.rows == height) {
      to.images = std::clamp<int64_t>(tile / (height * width), 1, ceil_div(group, threads));
    } else {
      const int64_t tiles = ceil_div(height, to.rows);
      to.rows = ceil_div(height, tiles);
      if (threads > 1) to.bands = std::clamp<int64_t>(ceil_div(TASKS * threads, group), 1, ceil_div(height, to.rows));
    }
    to.some_rows = std::clamp<int64_t>(56 / width, 1, to.rows);
    to.slots = to.rows == height ? to.images * out_height : (to.rows - 1 + 2 * d) / stride + 2;
    return to;
  }
};

// One node; T is what tensors are in, E what they are multiplied in.
template <class T, class E> struct NodeGradient {
  const Sum<T>& sum_of;
  const Sum<T>& inner;               // the gradient before BN
  const float* kernel;               // of the depthwise convolution, [9][lanes]
  const E* packed;                   // the matrix, from `pack_transposed`
  T* sum_grad;                       // of the sum, like a source; null if nobody needs it
  bool add;                          // to what is in sum_grad
  bool dots;                         // somebody needs those of `GradientSums`
};

// What a node's parameters, its sources' own passes and its edges' weights need: sums over all pixels, per channel, in
// rows of lanes: 9 of gradients of the kernel's taps, one of sum_grad, and those of sum_grad * inputs[k]. Each task has
// its own.
struct GradientSums {
  static constexpr int64_t TOTAL = 9, DOTS = 10;
  const int64_t rows, lanes;
  double* const data;
  GradientSums(int64_t count, int64_t lanes, int64_t task, double* all)
      : rows(DOTS + count), lanes(lanes), data(all + task * (DOTS + count) * lanes) {}
  int64_t size() const { return rows * lanes; }
};

}  // namespace
