// The backward pass of a stage: its nodes from the last to the first, in one parallel region.
//
// What a node's output receives is a weighted sum: of the gradients that its readers leave, each of the reader's sum of
// sources and hence the same for all of these, and of the stage's own. So is the gradient before its BN. BN needs two
// sums per channel of it, over all pixels and before anybody can read it: of the gradient, and of its product with the
// output. They are sums of such sums, which come out of the readers' own passes. A tensor is taken again when the last
// of the reader's sources is done.
//
// A node's books are made up, and the next one's matrix is laid out, while the rest of its own matrix's gradient is
// computed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "blocks.h"
#include "depthwise.h"
#include "gradient_tile.h"
#include "memory.h"
#include "node_backward.h"
#include "node_gradient.h"
#include "stage.h"
#include "sums.h"
#include "team.h"

namespace {

// What a stage's backward pass is given, beside what the forward pass was, and what it writes; null for what nobody
// needs.
struct StageGradients {
  const void* grad;             // like a node's output
  const float *const *kernels;  // of the depthwise convolutions, [in][9]
  const float *const *matrices;  // of the 1x1 convolutions, [out][in]
  void* x_grad;
  float *edge_weight_grads, *norm_weight_grads, *norm_bias_grads;  // [edges] and twice [nodes][channels]
  float *const *kernel_grads, *const *matrix_grads;                // only a matrix's may be null
};

template <class T> class StageBackward {
  typedef typename Operand<T>::type E;
  static constexpr int64_t PACKED = 32;  // rows of a matrix that are laid out by a task

  struct Node {
    int64_t first_source, first_edge, count;  // of its sources and of the weights of their edges
    bool reads_input, is_output;
    Tiling tiling;
    // What has come from its readers, and from the stage: gradients with the weights of the edges, and their sums.
    std::vector<const T*> grads;
    std::vector<float> weights;
    std::vector<double> total, dot;
    std::vector<int64_t> readers;
    // What it is when its own turn comes.
    Terms<T> terms;
    std::vector<float> before, slope, constant;  // the gradient before BN: before * grad + slope * out + constant
    std::optional<Sum<T>> sum_of, inner;
    std::optional<Buffer<float>> kernel;
    std::optional<NodeGradient<T, E>> of;
    T* left = nullptr;      // as long as one of its sources is to come
    int64_t to_come = 0;
  };

  const StageArguments& s;
  const StageGradients& g;
  const int threads;
  const Shape inner;
  const int64_t pixels, lanes, output_pixels;
  std::vector<float> scale, shift;  // of the nodes' BN
  std::vector<Node> nodes;
  int64_t most_sources = 1;
  NodeBackward<T> of_inner, of_input;
  Buffer<E> packed[2];  // matrices of every other node
  std::optional<Buffer<double>> output_sums, sums;
  std::vector<Buffer<T>> tensors;
  std::vector<T*> free;
  bool x_is_there = false;
  Team team;

 public:
  StageBackward(const StageArguments& s, const StageGradients& g)
      : s(s), g(g), threads(max_threads()), inner(s.inner()), pixels(s.batch * inner.height * inner.width),
        lanes(padded(s.channels)), output_pixels(ceil_div(pixels, TASKS * threads * 64) * 64),
        scale(s.num_nodes * s.channels), shift(s.num_nodes * s.channels), nodes(s.num_nodes),
        of_inner(NodeSizes<E>(inner, s.channels, threads)), of_input(NodeSizes<E>(s.input(), s.channels, threads)),
        packed{Buffer<E>(matrix_size(), false), Buffer<E>(matrix_size(), false)} {
    int64_t source = 0, edge = 0, most = 0;
    for (int64_t i = 0; i < s.num_nodes; i++) {
      Node& node = nodes[i];
      node.first_source = source, node.first_edge = edge, node.count = s.in_degrees[i];
      node.reads_input = s.sources[source] < 0, node.is_output = false;
      node.tiling = engine(node).s.tiling(node.count, sizeof(T));
      node.total.resize(s.channels), node.dot.resize(s.channels);
      source += node.count;
      if (node.count > 1) edge += node.count;
      most_sources = std::max(most_sources, node.count);
      const NodeBackward<T>& its = engine(node);
      most = std::max(most, its.tile_tasks(node.tiling, its.s.group) * sums_of(node, 0).size());
    }
    for (int64_t k = 0; k < s.num_outputs; k++) nodes[s.outputs[k]].is_output = true;
    sums.emplace(most, false);
    output_sums.emplace(output_tasks() * (1 + s.num_outputs) * lanes);
  }

  void run() {
#pragma omp parallel num_threads(threads)
    team.join([&](Team::Member member) { work(member); });
    team.check();
  }

 private:
  NodeBackward<T>& engine(const Node& node) { return node.reads_input ? of_input : of_inner; }
  int64_t matrix_size() const { return std::max(padded(s.in_channels), lanes) * product_depth<E>(s.channels); }
  int64_t output_tasks() const { return ceil_div(pixels, output_pixels); }
  int64_t pack_tasks() const { return ceil_div(s.channels, PACKED); }
  GradientSums sums_of(const Node& node, int64_t task) {
    return {node.count, engine(node).s.lanes, task, sums ? sums->data : nullptr};
  }

  // What each thread does.
  void work(Team::Member& member) {
    GradientTile<T> inner_tile(of_inner.s, most_sources), input_tile(of_input.s, 1);
    Buffer<float> plain(std::max(of_inner.plain_size(), of_input.plain_size()), false);
    const int64_t last = s.num_nodes - 1, clears = of_inner.s.group, input_clears = of_input.s.group;
    member.share(output_tasks(), [&](int64_t task) { sum_outputs(task); },
                 s.num_nodes + clears + input_clears, [&](int64_t task) {
      const int64_t row = task * s.channels;
      if (task < s.num_nodes) normalisation(s, task, s.mean + row, s.variance + row, &scale[row], &shift[row]);
      else if ((task -= s.num_nodes) < clears) of_inner.clear_padding(task);
      else of_input.clear_padding(task - clears);
    });
    member.share(1, [&](int64_t) { open(last); }, pack_tasks(), [&](int64_t task) { pack(last, task); });
    for (int64_t i = last; i >= 0; i--) {
      const Node& node = nodes[i];
      NodeBackward<T>& its = engine(node);
      GradientTile<T>& tile = node.reads_input ? input_tile : inner_tile;
      float* const matrix_grad = g.matrix_grads[i];
      const int64_t matrix_tasks = matrix_grad ? its.matrix_tasks() : 0;
      auto add_matrix_gradient = [&](int64_t group) {
        return [&its, matrix_grad, group](int64_t task) { its.add_matrix_gradient(group, task, matrix_grad); };
      };
      for (int64_t group = 0; group < its.groups(); group++) {
        const int64_t images = its.images(group), begin = group * its.s.group, sum_tasks = its.sum_tasks(images);
        member.share(sum_tasks + its.inner_tasks(images), [&](int64_t task) {
          if (task < sum_tasks) its.compute_sums(*node.of, group, task);
          else its.compute_inner(*node.of, group, task - sum_tasks, matrix_grad);
        }, group > 0 ? matrix_tasks : 0, add_matrix_gradient(group - 1));
        const int64_t tile_tasks = its.tile_tasks(node.tiling, images);
        member.share(tile_tasks + (matrix_grad ? its.hidden_tasks(images) : 0), [&](int64_t task) {
          if (task >= tile_tasks) its.compute_hidden(*node.of, group, task - tile_tasks, plain.data);
          else tile.run(*node.of, node.tiling, begin, images, task, its.sums_data(), its.inner_data(group),
                        sums_of(node, task));
        });
      }
      member.share(1 + (i > 0 ? pack_tasks() : 0), [&](int64_t task) {
        if (task > 0) return pack(i - 1, task - 1);
        close(i);
        if (i > 0) open(i - 1);
      }, matrix_tasks, add_matrix_gradient(its.groups() - 1));
    }
  }

  void pack(int64_t i, int64_t task) {
    pack_transposed(g.matrices[i], engine(nodes[i]).s.in_channels, s.channels, task * PACKED,
                    std::min((task + 1) * PACKED, product_depth<E>(s.channels)), packed[i % 2].data);
  }

  // Of some pixels, the sums of the stage's gradient and of its products with the output nodes.
  void sum_outputs(int64_t task) {
    const int64_t begin = task * output_pixels, end = std::min(begin + output_pixels, pixels), some = 64;
    double* const to = output_sums->data + task * (1 + s.num_outputs) * lanes;
    const T* const grad = static_cast<const T*>(g.grad);
    for (int64_t first = begin; first < end; first += some)
      for (int64_t c = 0; c < s.channels; c += LANES) {
        const int64_t n = std::min(LANES, s.channels - c), last = std::min(first + some, end);
        auto add = [&](int64_t row, auto value) INLINED {
          Vec total = zeros();
          for (int64_t i = first; i < last; i++) total += value(i * s.channels + c);
          for (int64_t lane = 0; lane < n; lane++) to[row * lanes + c + lane] += total[lane];
        };
        add(0, [&](int64_t at) INLINED { return load(grad + at, n); });
        for (int64_t k = 0; k < s.num_outputs; k++) {
          const T* const out = static_cast<const T*>(s.nodes[s.outputs[k]]);
          add(1 + k, [&](int64_t at) INLINED { return load(grad + at, n) * load(out + at, n); });
        }
      }
  }

  // An output node's part of the stage's gradient.
  void receive_output(Node& node, int64_t i) {
    const float share = 1.0f / s.num_outputs;
    const int64_t k = std::find(s.outputs, s.outputs + s.num_outputs, i) - s.outputs;
    for (int64_t task = 0; task < output_tasks(); task++) {
      const double* const from = output_sums->data + task * (1 + s.num_outputs) * lanes;
      for (int64_t c = 0; c < s.channels; c++) {
        node.total[c] += share * from[c];
        node.dot[c] += share * from[(1 + k) * lanes + c];
      }
    }
    node.grads.push_back(static_cast<const T*>(g.grad));
    node.weights.push_back(share);
  }

  // A node's turn comes: all that it receives is there.
  void open(int64_t i) {
    Node& node = nodes[i];
    if (node.is_output) receive_output(node, i);
    const int64_t row = i * s.channels;
    node.before.resize(s.channels), node.slope.resize(s.channels), node.constant.resize(s.channels);
    for (int64_t c = 0; c < s.channels; c++) {
      const double mean = s.mean[row + c], inv_std = 1 / std::sqrt(s.variance[row + c] + s.eps[i]);
      const double weight_grad = (node.dot[c] - mean * node.total[c]) * inv_std, a = s.norm_weight[row + c] * inv_std;
      g.norm_weight_grads[row + c] = weight_grad;
      g.norm_bias_grads[row + c] = node.total[c];
      const double b = -a * inv_std * weight_grad / pixels;
      node.before[c] = a;
      node.slope[c] = b;
      node.constant[c] = -a * node.total[c] / pixels - b * mean;
    }
    std::vector<const float*> scales(node.grads.size(), node.before.data()), shifts(node.grads.size(), nullptr);
    if (s.of_batch[i]) {
      node.grads.push_back(static_cast<const T*>(s.nodes[i]));
      node.weights.push_back(1);
      scales.push_back(node.slope.data()), shifts.push_back(node.constant.data());
    }
    node.inner.emplace(node.grads.data(), node.grads.size(), node.weights.data(), scales.data(), shifts.data(),
                       s.channels);
    for (int64_t k = 0; k < node.count; k++)
      node.terms.add(s, s.sources[node.first_source + k], node.count > 1 ? s.edge_weights[node.first_edge + k] : 1.0f,
                     scale.data(), shift.data());
    const int64_t in_channels = engine(node).s.in_channels;
    node.sum_of.emplace(node.terms.sum(in_channels));
    node.kernel.emplace(pack_kernel(g.kernels[i], in_channels));
    if (!node.reads_input) node.left = take(), node.to_come = node.count;
    node.of.emplace(NodeGradient<T, E>{
        *node.sum_of, *node.inner, node.kernel->data, packed[i % 2].data,
        node.reads_input ? static_cast<T*>(g.x_grad) : node.left, node.reads_input && x_is_there, !node.reads_input});
    if (node.reads_input) x_is_there = true;
  }

  // It is over: its parameters' gradients, and what its sources receive.
  void close(int64_t i) {
    Node& node = nodes[i];
    const NodeBackward<T>& its = engine(node);
    const GradientSums all = sums_of(node, 0);
    const int64_t tasks = its.tile_tasks(node.tiling, its.s.group), in_channels = its.s.in_channels;
    for (int64_t task = 1; task < tasks; task++) {
      const double* const from = sums_of(node, task).data;
      for (int64_t at = 0; at < all.size(); at++) all.data[at] += from[at];
    }
    for (int64_t c = 0; c < in_channels; c++)
      for (int64_t tap = 0; tap < 9; tap++) g.kernel_grads[i][c * 9 + tap] = all.data[tap * all.lanes + c];
    for (const int64_t reader : node.readers)
      if (--nodes[reader].to_come == 0) free.push_back(nodes[reader].left);
    if (node.reads_input) return;
    const double* const total = all.data + GradientSums::TOTAL * all.lanes;
    for (int64_t k = 0; k < node.count; k++) {
      const int64_t source = s.sources[node.first_source + k];
      Node& its = nodes[source];
      const double* const dots = all.data + (GradientSums::DOTS + k) * all.lanes;
      const float *its_scale = &scale[source * s.channels], *its_shift = &shift[source * s.channels];
      const float weight = node.terms.weights[k];
      double of_weight = 0;
      for (int64_t c = 0; c < s.channels; c++) {
        of_weight += its_scale[c] * dots[c] + its_shift[c] * total[c];
        its.total[c] += weight * total[c];
        its.dot[c] += weight * dots[c];
      }
      if (node.count > 1) g.edge_weight_grads[node.first_edge + k] = of_weight;
      its.readers.push_back(i);
      its.grads.push_back(node.left);
      its.weights.push_back(weight);
    }
  }

  T* take() {
    if (free.empty()) {
      tensors.emplace_back(pixels * s.channels, false);
      free.push_back(tensors.back().data);
    }
    T* const tensor = free.back();
    free.pop_back();
    return tensor;
  }
};

}  // namespace
