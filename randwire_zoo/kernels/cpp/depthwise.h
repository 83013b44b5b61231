// The depthwise 3x3 convolution, row by row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "memory.h"
#include "vectors.h"

namespace {

struct Shape {
  int64_t batch, height, width, channels, stride, dilation;
  int64_t out_height() const { return (height - 1) / stride + 1; }
  int64_t out_width() const { return (width - 1) / stride + 1; }
};

// A kernel [channels][3][3] as [9][lanes]; a vector of its channels.
template <class T> void pack_kernel_vector(const T* kernel, int64_t channels, int64_t c, float* packed) {
  const int64_t lanes = padded(channels);
  for (int64_t tap = 0; tap < 9; tap++) {
    float* const to = packed + tap * lanes + c;
    store_all(to, zeros());
    for (int64_t i = 0; i < std::min(LANES, channels - c); i++) convert(kernel[(c + i) * 9 + tap], to + i);
  }
}

// All of it.
template <class T> Buffer<float> pack_kernel(const T* kernel, int64_t channels) {
  Buffer<float> packed(9 * padded(channels), false);
  for (int64_t c = 0; c < channels; c += LANES) pack_kernel_vector(kernel, channels, c, packed.data);
  return packed;
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

// One output row of the depthwise 3x3 convolution for one vector of channels. U outputs at a time share loads. What
// channels are padded with stays zeros.
template <class T, int S, int U>
ALWAYS int64_t depthwise_pixels(const float* const* rows, int64_t pixel, int64_t dilation, const Vec* w, T* to,
                                int64_t to_pixel, int64_t x, int64_t width) {
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
    for (int u = 0; u < U; u++) store_all(to + (x + u) * to_pixel, sums[u]);
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
    int64_t x = depthwise_pixels<T, S, 7>(at, lanes, dilation, w, to + c, to_pixel, 0, width);
    x = depthwise_pixels<T, S, 2>(at, lanes, dilation, w, to + c, to_pixel, x, width);
    depthwise_pixels<T, S, 1>(at, lanes, dilation, w, to + c, to_pixel, x, width);
  }
}

}  // namespace
