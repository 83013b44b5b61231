// The forward pass of a stage: its nodes from the first to the last, in one parallel region.
//
// A node's output is shared out by rows. What a node's constants are laid out as is made while the node before it runs,
// and forgotten after it: matrices that change with every step are read from memory once.
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
#include "team.h"
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
  std::vector<Moments> moments;                     // of each task
  Buffer<E> hidden;                                 // of all pixels, for nodes whose matrix is shared out
  Team team;

 public:
  explicit StageForward(const StageArguments& s)
      : s(s), input(s.input()), inner(s.inner()), threads(max_threads()), pixels(s.batch * inner.height * inner.width),
        most_channels(std::max(s.in_channels, s.channels)), scale(s.num_nodes * s.channels),
        shift(s.num_nodes * s.channels), hidden(in_parts() ? (pixels + AMX_BEHIND) * padded(most_channels) : 0, false) {
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
    for (int64_t i = 0; i < std::max<int64_t>(row_tasks(), threads); i++) moments.emplace_back(s.channels);
  }

  void run() {
#pragma omp parallel num_threads(threads)
    team.join([&](Team::Member member) { work(member); });
    team.check();
  }

 private:
  bool reads_input(int64_t i) const { return s.sources[first_source[i]] < 0; }
  const Shape& shape(int64_t i) const { return reads_input(i) ? input : inner; }
  bool of_batch(int64_t i) const { return s.norm_weight && s.of_batch[i]; }
  // Whether threads share out a node's matrix rather than its pixels, of which there are few.
  bool in_parts() const { return threads > 1 && pixels <= s.channels; }
  // As many for each thread, so that none waits for another; some, as not all may be equally fast.
  int64_t row_tasks() const {
    if (threads == 1) return 1;
    return threads * std::clamp<int64_t>(pixels / (threads * FEWEST_PIXELS_AT_ONCE), 1, TASKS);
  }

  // What each thread does.
  void work(Team::Member& member) {
    LastRows of_input(input), of_inner(inner);
    Terms<T> terms;
    member.share(prepare_tasks(), [&](int64_t task) { prepare(0, task); });
    for (int64_t i = 0; i < s.num_nodes; i++) {
      terms.clear();
      for (int64_t k = 0; k < s.in_degrees[i]; k++)
        terms.add(s, s.sources[first_source[i] + k], s.in_degrees[i] > 1 ? s.edge_weights[first_weight[i] + k] : 1.0f,
                  scale.data(), shift.data());
      const Sum<T> sum_of = terms.sum(shape(i).channels);
      const bool strides = shape(i).stride == 2;
      LastRows& last = reads_input(i) ? of_input : of_inner;
      const int64_t tasks = in_parts() ? threads : row_tasks(), rows = s.batch * inner.height;
      auto prepare_next = [&](int64_t task) { prepare(i + 1, task); };
      const int64_t next = i + 1 < s.num_nodes ? prepare_tasks() : 0;
      if (in_parts()) {
        member.share(tasks, [&](int64_t task) {
          const NodeTask<T> part = node_task(i, sum_of, task);
          (strides ? hidden_rows<T, 2> : hidden_rows<T, 1>)(part, rows * task / tasks, rows * (task + 1) / tasks,
                                                            hidden.data, last);
        });
        member.share(tasks, [&](int64_t task) { multiply_part(node_task(i, sum_of, task), hidden.data, task, tasks); },
                     next, prepare_next);
      } else {
        member.share(tasks, [&](int64_t task) {
          const NodeTask<T> part = node_task(i, sum_of, task);
          (strides ? node_rows<T, 2> : node_rows<T, 1>)(part, rows * task / tasks, rows * (task + 1) / tasks, last);
        }, next, prepare_next);
      }
      if (of_batch(i))
        member.share(padded(s.channels) / LANES, [&](int64_t block) { normalise(i, block * LANES, tasks); });
    }
    if (!s.out) return;
    terms.clear();
    for (int64_t i = 0; i < s.num_outputs; i++)
      terms.add(s, s.outputs[i], 1.0f / s.num_outputs, scale.data(), shift.data());
    const Sum<T> mean = terms.sum(s.channels);
    const int64_t tasks = TASKS * threads;
    member.share(tasks, [&](int64_t task) {
      sum_pixels(mean, static_cast<T*>(s.out), pixels * task / tasks, pixels * (task + 1) / tasks, s.channels);
    });
  }

  NodeTask<T> node_task(int64_t i, const Sum<T>& sum_of, int64_t task) {
    const Constants& its = constants[i % 2];
    Moments* const mine = of_batch(i) ? &moments[task] : nullptr;
    if (mine) mine->clear();
    return {sum_of, its.kernel.data, s.packed ? static_cast<const E*>(s.packed[i]) : its.matrix.data, its.bias.data,
            static_cast<T*>(s.nodes[i]), shape(i), s.channels, mine};
  }

  // What a node's pass reads, laid out: its kernel and biases at once, then its matrix by rows.
  int64_t prepare_tasks() const { return 1 + (s.packed ? 0 : padded(s.channels) / LANES); }
  void prepare(int64_t i, int64_t task) {
    Constants& to = constants[i % 2];
    const int64_t in_channels = shape(i).channels;
    if (task > 0) {
      if (s.wide_pointwise[i])
        pack_rows(static_cast<const float*>(s.pointwise[i]), in_channels, s.channels, task - 1, to.matrix.data);
      else
        pack_rows(static_cast<const T*>(s.pointwise[i]), in_channels, s.channels, task - 1, to.matrix.data);
      return;
    }
    for (int64_t c = 0; c < in_channels; c += LANES) {
      if (s.wide_depthwise[i])
        pack_kernel_vector(static_cast<const float*>(s.depthwise[i]), in_channels, c, to.kernel.data);
      else
        pack_kernel_vector(static_cast<const T*>(s.depthwise[i]), in_channels, c, to.kernel.data);
    }
    if (s.biases)
      for (int64_t c = 0; c < s.channels; c++) convert(static_cast<const T*>(s.biases[i])[c], to.bias.data + c);
  }

  // BN from the batch's own statistics, as scale * x + shift, of a vector of channels; mean and biased variance, too.
  void normalise(int64_t i, int64_t first, int64_t tasks) {
    const int64_t row = i * s.channels;
    for (int64_t c = first; c < std::min(first + LANES, s.channels); c++) {
      double sum = 0, squares = 0;
      for (int64_t task = 0; task < tasks; task++) sum += moments[task].total(c), squares += moments[task].squares(c);
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
};

}  // namespace
