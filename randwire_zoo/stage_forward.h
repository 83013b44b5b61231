// The forward pass of a stage: its nodes from the first to the last.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "moments.h"
#include "node_forward.h"
#include "stage.h"

namespace {

template <class T> void stage(const StageArguments& s) {
  typedef typename Operand<T>::type E;
  std::vector<float> scale(s.num_nodes * s.channels), shift(s.num_nodes * s.channels);
  Terms<T> terms;
  const Shape input = s.input(), inner = s.inner();
  const int64_t pixels = s.batch * inner.height * inner.width;
  const int64_t* next_source = s.sources;
  const float* next_weight = s.edge_weights;
  for (int64_t i = 0; i < s.num_nodes; i++) {
    const bool reads_input = *next_source < 0;
    const Shape& shape = reads_input ? input : inner;
    terms.clear();
    for (int64_t k = 0; k < s.in_degrees[i]; k++)
      terms.add(s, *next_source++, s.in_degrees[i] > 1 ? *next_weight++ : 1.0f, scale.data(), shift.data());
    T* out = static_cast<T*>(s.nodes[i]);
    (reads_input && s.stride == 2 ? node<T, 2> : node<T, 1>)(
        terms.sum(shape.channels), static_cast<const T*>(s.depthwise[i]), static_cast<const E*>(s.packed[i]),
        s.biases ? static_cast<const T*>(s.biases[i]) : nullptr, out, shape, s.channels);
    if (s.norm_weight == nullptr) continue;
    const int64_t row = i * s.channels;
    if (s.of_batch[i]) {
      batch_norm(out, s.norm_weight + row, s.norm_bias + row, s.eps[i], s.mean + row, s.variance + row, &scale[row],
                 &shift[row], pixels, s.channels);
    } else {
      std::copy_n(s.given_mean + row, s.channels, s.mean + row);
      std::copy_n(s.given_variance + row, s.channels, s.variance + row);
      normalisation(s, i, s.mean + row, s.variance + row, &scale[row], &shift[row]);
    }
  }
  if (s.out == nullptr) return;
  terms.clear();
  for (int64_t i = 0; i < s.num_outputs; i++) terms.add(s, s.outputs[i], 1.0f / s.num_outputs, scale.data(), shift.data());
  sum(terms.sum(s.channels), static_cast<T*>(s.out), pixels, s.channels);
}

}  // namespace
