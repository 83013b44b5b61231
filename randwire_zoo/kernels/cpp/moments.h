// Sums over all pixels, per channel: BN's statistics.
#pragma once

#include <algorithm>
#include <cstdint>

#include "memory.h"
#include "vectors.h"

namespace {

// Sums of what one task has made of a node's output, per channel: of x and of x * x, for mean and variance.
class Moments {
  static constexpr int64_t PIXELS = 64;  // that are summed up in float, as differences from the first of them
  const int64_t lanes;
  Buffer<double> sums;  // [2][lanes]

 public:
  explicit Moments(int64_t channels) : lanes(padded(channels)), sums(2 * padded(channels)) {}

  void clear() { std::fill_n(sums.data, 2 * lanes, 0.0); }
  double total(int64_t channel) const { return sums.data[channel]; }
  double squares(int64_t channel) const { return sums.data[lanes + channel]; }

  // Channels begin to end, of which begin is at a vector's start, of some pixels.
  template <class T> void add(const T* x, int64_t pixels, int64_t channels, int64_t begin, int64_t end) {
    for (int64_t p = 0; p < pixels; p += PIXELS) {
      const int64_t count = std::min(PIXELS, pixels - p);
      int64_t c = begin;
      for (; c + LANES <= end; c += LANES) add_vector(x + p * channels + c, count, channels, c, LANES);
      if (c < end) add_vector(x + p * channels + c, count, channels, c, end - c);
    }
  }

 private:
  template <class T> ALWAYS void add_vector(const T* x, int64_t count, int64_t channels, int64_t c, int64_t n) {
    constexpr int U = 4;  // as many sums at a time as hide the latency of additions
    const Vec first = load(x, n);
    Vec one[U], two[U];
    for (int u = 0; u < U; u++) one[u] = two[u] = zeros();
    auto add = [&](const T* from, int u) INLINED {
      const Vec difference = load(from, n) - first;
      one[u] += difference;
      two[u] += difference * difference;
    };
    int64_t i = 0;
    for (; i + U <= count; i += U)
      for (int u = 0; u < U; u++) add(x + (i + u) * channels, u);
    for (; i < count; i++) add(x + i * channels, 0);
    float from[LANES], of_one[LANES], of_two[LANES];
    store_all(from, first);
    store_all(of_one, (one[0] + one[1]) + (one[2] + one[3]));
    store_all(of_two, (two[0] + two[1]) + (two[2] + two[3]));
    const double pixels = static_cast<double>(count);
    double *total = sums.data + c, *squares = total + lanes;
    for (int64_t lane = 0; lane < LANES; lane++) {
      const double zero = from[lane], sum = of_one[lane];
      total[lane] += sum + pixels * zero;
      squares[lane] += of_two[lane] + zero * (2 * sum + pixels * zero);
    }
  }
};

}  // namespace
