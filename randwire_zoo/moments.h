// Sums over all pixels, per channel: BN's statistics, and what its gradients need.
#pragma once

#include <algorithm>
#include <cmath>
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
      for (const auto& thread : threads) if (!thread.empty()) to[row * channels + c] += thread[row * padded(channels) + c];
  return to;
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

}  // namespace
