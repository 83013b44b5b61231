// The forward pass of a node.
#pragma once

#include <algorithm>
#include <cstdint>

#include "depthwise.h"
#include "memory.h"
#include "pointwise.h"
#include "sums.h"
#include "vectors.h"

namespace {

constexpr int64_t TILE_BYTES = 256 << 10;  // what may stand between the two convolutions of a node: half a second-level cache

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

}  // namespace
