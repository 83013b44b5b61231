// The forward pass of a stage: its nodes from the first to the last, all of them by the same team of threads.
//
// Each thread has its rows of every node's output, and waits for the others at a barrier between two nodes. What a
// node's constants are laid out as is made while the node before it runs, and forgotten after it: matrices that change
// with every step are read from memory once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "depthwise.h"
#include "memory.h"
#include "moments.h"
#include "node_forward.h"
#include "pointwise.h"
#include "stage.h"
#include "sums.h"
#include "vectors.h"

namespace {

template <class T> class StageForward {
  typedef typename Operand<T>::type E;

  struct Constants {
    Buffer<E> matrix;
    Buffer<float> kernel, bias;
  };

  const StageArguments& s;
  const Shape input, inner;
  const int threads;
  const int64_t pixels, most_channels;
  std::vector<int64_t> first_source, first_weight;  // of each node
  std::vector<float> scale, shift;                  // of the nodes' BN
  std::vector<Constants> constants;                 // of every other node
  std::vector<Moments> moments;                     // of each thread
  Buffer<E> hidden;                                 // of all pixels, for nodes whose matrix is shared out

 public:
  explicit StageForward(const StageArguments& s)
      : s(s), input(s.input()), inner(s.inner()), threads(max_threads()), pixels(s.batch * inner.height * inner.width),
        most_channels(std::max(s.in_channels, s.channels)), scale(s.num_nodes * s.channels),
        shift(s.num_nodes * s.channels), hidden(in_parts() ? pixels * padded(most_channels) : 0, false) {
    int64_t source = 0, weight = 0;
    for (int64_t i = 0; i < s.num_nodes; i++) {
      first_source.push_back(source), first_weight.push_back(weight);
      source += s.in_degrees[i];
      if (s.in_degrees[i] > 1) weight += s.in_degrees[i];
      if (s.norm_weight && !s.of_batch[i]) {
        const int64_t row = i * s.channels;
        std::copy_n(s.given_mean + row, s.channels, s.mean + row);
        std::copy_n(s.given_variance + row, s.channels, s.variance + row);
        normalisation(s, i, s.mean + row, s.variance + row, &scale[row], &shift[row]);
      }
    }
    for (int i = 0; i < 2; i++)
      constants.push_back({Buffer<E>(s.packed ? 0 : packed_size(most_channels, s.channels), false),
                           Buffer<float>(9 * padded(most_channels)), Buffer<float>(padded(s.channels))});
    for (int i = 0; i < threads; i++) moments.emplace_back(s.channels);
  }

  void run() {
#pragma omp parallel num_threads(threads)
    {
      LastRows of_input(input), of_inner(inner);
      Terms<T> terms;
      prepare(0);
      for (int64_t i = 0; i < s.num_nodes; i++) {
#pragma omp barrier
        node(i, reads_input(i) ? of_input : of_inner, terms);
        if (i + 1 < s.num_nodes) prepare(i + 1);
        if (s.norm_weight && s.of_batch[i]) {
#pragma omp barrier
          normalise(i);
        }
      }
#pragma omp barrier
      if (s.out) mean_of_outputs(terms);
    }
  }

 private:
  bool reads_input(int64_t i) const { return s.sources[first_source[i]] < 0; }
  // Whether threads share out a node's matrix rather than its pixels, of which there are few.
  bool in_parts() const { return threads > 1 && pixels <= s.channels; }

  // What a node's pass reads, laid out; each thread does a part.
  void prepare(int64_t i) {
    Constants& to = constants[i % 2];
    const int64_t in_channels = reads_input(i) ? s.in_channels : s.channels;
    auto kernel = [&](auto* from) {
#pragma omp for schedule(static) nowait
      for (int64_t c = 0; c < in_channels; c += LANES)
        pack_kernel_vector(from, in_channels, c, to.kernel.data);
    };
    auto matrix = [&](auto* from) {
#pragma omp for schedule(static) nowait
      for (int64_t block = 0; block < padded(s.channels) / LANES; block++)
        pack_rows(from, in_channels, s.channels, block, to.matrix.data);
    };
    if (s.wide_depthwise[i]) kernel(static_cast<const float*>(s.depthwise[i]));
    else kernel(static_cast<const T*>(s.depthwise[i]));
    if (!s.packed) {
      if (s.wide_pointwise[i]) matrix(static_cast<const float*>(s.pointwise[i]));
      else matrix(static_cast<const T*>(s.pointwise[i]));
    }
    if (s.biases) {
#pragma omp for schedule(static) nowait
      for (int64_t c = 0; c < s.channels; c++) convert(static_cast<const T*>(s.biases[i])[c], to.bias.data + c);
    }
  }

  void node(int64_t i, LastRows& last, Terms<T>& terms) {
    const Shape& shape = reads_input(i) ? input : inner;
    terms.clear();
    for (int64_t k = 0; k < s.in_degrees[i]; k++)
      terms.add(s, s.sources[first_source[i] + k], s.in_degrees[i] > 1 ? s.edge_weights[first_weight[i] + k] : 1.0f,
                scale.data(), shift.data());
    const Sum<T> sum_of = terms.sum(shape.channels);
    const Constants& its = constants[i % 2];
    Moments* const mine = s.norm_weight && s.of_batch[i] ? &moments[thread_number()] : nullptr;
    if (mine) mine->clear();
    const NodeTask<T> task{sum_of, its.kernel.data, s.packed ? static_cast<const E*>(s.packed[i]) : its.matrix.data,
                           its.bias.data, static_cast<T*>(s.nodes[i]), shape, s.channels, mine};
    if (in_parts()) return (shape.stride == 2 ? node_parts<T, 2> : node_parts<T, 1>)(task, hidden.data, last);
    const int64_t rows = s.batch * inner.height, me = thread_number(), all = num_threads();
    (shape.stride == 2 ? node_rows<T, 2> : node_rows<T, 1>)(task, rows * me / all, rows * (me + 1) / all, last);
  }

  // BN from the batch's own statistics, as scale * x + shift: mean and biased variance, too.
  void normalise(int64_t i) {
    const int64_t row = i * s.channels;
#pragma omp for schedule(static) nowait
    for (int64_t c = 0; c < s.channels; c++) {
      double sum = 0, squares = 0;
      for (const Moments& thread : moments) sum += thread.total(c), squares += thread.squares(c);
      const double mean = sum / pixels;
      double variance = squares / pixels - mean * mean;
      if (variance < 0) variance = 0;  // by rounding; NaN stays NaN
      const double a = s.norm_weight[row + c] / std::sqrt(variance + s.eps[i]);
      s.mean[row + c] = mean;
      s.variance[row + c] = variance;
      scale[row + c] = a;
      shift[row + c] = s.norm_bias[row + c] - mean * a;
    }
  }

  void mean_of_outputs(Terms<T>& terms) {
    terms.clear();
    for (int64_t i = 0; i < s.num_outputs; i++)
      terms.add(s, s.outputs[i], 1.0f / s.num_outputs, scale.data(), shift.data());
    const int64_t me = thread_number(), all = num_threads();
    sum_pixels(terms.sum(s.channels), static_cast<T*>(s.out), pixels * me / all, pixels * (me + 1) / all, s.channels);
  }
};

}  // namespace
