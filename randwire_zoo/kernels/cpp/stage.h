// What a stage is, for both of its passes.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "depthwise.h"
#include "sums.h"
#include "vectors.h"

namespace {

// A whole stage, as `operators.py` defines it; addresses of what is left out are null.
struct StageArguments {
  int64_t batch, height, width, in_channels, channels, num_nodes, num_outputs, stride, input_dilation, dilation;
  const int64_t *sources, *in_degrees, *outputs;
  const float* edge_weights;
  const void *x, *const *depthwise, *const *pointwise;  // kernels [in][9] and matrices [out][in] of each node
  const uint8_t *wide_depthwise, *wide_pointwise;       // which of them are fp32, whatever the data are
  const void *const *packed, *const *biases;            // the same matrices laid out beforehand, if they are
  const float *norm_weight, *norm_bias, *given_mean, *given_variance;
  const double* eps;
  const uint8_t* of_batch;
  void* const* nodes;  // of each node; a node's memory may be that of another which nobody reads any more
  float *mean, *variance;
  void* out;  // null where the only output node is the stage's output
  Shape input() const { return {batch, height, width, in_channels, stride, input_dilation}; }
  Shape inner() const { return {batch, input().out_height(), input().out_width(), channels, 1, dilation}; }
};

// The constants of a node's BN.
void normalisation(const StageArguments& s, int64_t i, const float* mean, const float* variance, float* scale,
                   float* shift) {
  for (int64_t c = 0; c < s.channels; c++) {
    const double a = s.norm_weight[i * s.channels + c] / std::sqrt(variance[c] + s.eps[i]);
    scale[c] = a;
    shift[c] = s.norm_bias[i * s.channels + c] - mean[c] * a;
  }
}

// The sources of a node, as a sum.
template <class T> struct Terms {
  std::vector<const T*> inputs;
  std::vector<const float*> scales, shifts;
  std::vector<float> weights;
  void clear() { inputs.clear(); scales.clear(); shifts.clear(); weights.clear(); }
  void add(const StageArguments& s, int64_t source, float weight, const float* scale, const float* shift) {
    const bool plain = source < 0 || s.norm_weight == nullptr;
    inputs.push_back(static_cast<const T*>(source < 0 ? s.x : s.nodes[source]));
    scales.push_back(plain ? nullptr : scale + source * s.channels);
    shifts.push_back(plain ? nullptr : shift + source * s.channels);
    weights.push_back(weight);
  }
  Sum<T> sum(int64_t channels) const {
    return Sum<T>(inputs.data(), inputs.size(), weights.data(), scales.data(), shifts.data(), channels);
  }
};

}  // namespace
