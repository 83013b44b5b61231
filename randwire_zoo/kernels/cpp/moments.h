// Sums over all pixels, per channel: BN's statistics, and what its gradients need.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "memory.h"
#include "vectors.h"

namespace {

// Adds the threads' [rows][lanes] to [rows][channels].
std::vector<double> reduce(const std::vector<std::vector<double>>& threads, int64_t rows, int64_t channels) {
  std::vector<double> to(rows * channels);
  for (int64_t row = 0; row < rows; row++)
    for (int64_t c = 0; c < channels; c++)
      for (const auto& thread : threads)
        if (!thread.empty()) to[row * channels + c] += thread[row * padded(channels) + c];
  return to;
}

// One thread's sums of what it has seen of a node's output, per channel: of x and of x * x, for mean and variance.
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

// Per channel, over all pixels, [2][channels]: the sums of x and of x * y, for the gradients of BN.
template <class T>
std::vector<double> sums_and_products(const T* x, const T* y, int64_t pixels, int64_t channels) {
  const int64_t lanes = padded(channels), step = 64;
  const int threads = max_threads();
  std::vector<std::vector<double>> all(threads);
#pragma omp parallel num_threads(threads)
  {
    std::vector<double> total(2 * lanes, 0.0);
#pragma omp for schedule(static)
    for (int64_t begin = 0; begin < pixels; begin += step)
      for (int64_t c = 0; c < channels; c += LANES) {
        const int64_t n = std::min(LANES, channels - c);
        Vec one = zeros(), two = zeros();
        for (int64_t i = begin; i < std::min(begin + step, pixels); i++) {
          const Vec value = load(x + i * channels + c, n);
          one += value;
          two += value * load(y + i * channels + c, n);
        }
        for (int64_t lane = 0; lane < n; lane++) {
          total[c + lane] += one[lane];
          total[lanes + c + lane] += two[lane];
        }
      }
    all[thread_number()] = total;
  }
  return reduce(all, 2, channels);
}

}  // namespace
