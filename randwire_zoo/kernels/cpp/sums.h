// Weighted sums of tensors: what enters a node, and the mean of a stage's outputs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "memory.h"
#include "vectors.h"

namespace {

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
        sum += (PLAIN ? all_of(edge_weights[k]) : load_all(weights + k * lanes + c)) * load(inputs[k] + pixel + c, n);
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
    case 5: return run(std::integral_constant<int, 5>());
    case 6: return run(std::integral_constant<int, 6>());
    default: return run(std::integral_constant<int, 0>());
  }
}

// out = sum, for some pixels.
template <class T> void sum_pixels(const Sum<T>& sum_of, T* out, int64_t begin, int64_t end, int64_t channels) {
  const int64_t lanes = padded(channels), count = sum_of.count;
  const T* const* inputs = sum_of.inputs;
  const float *weights = sum_of.weights.data, *bias = sum_of.bias.data;
  for (int64_t x = begin; x < end; x++)
    for (int64_t c = 0; c < channels; c += LANES) {
      const int64_t n = std::min(LANES, channels - c);
      Vec sum = load_all(bias + c);
      for (int64_t k = 0; k < count; k++)
        sum += load_all(weights + k * lanes + c) * load(inputs[k] + x * channels + c, n);
      store(out + x * channels + c, sum, n);
    }
}

}  // namespace
