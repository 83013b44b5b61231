// The backward pass of a stage: its nodes from the last to the first. Included by kernels.cpp.
//
// What a node's output receives from its readers is added up in one tensor, together with two sums per channel that BN's
// backward pass needs: of that gradient, and of its product with the output. They come out of the readers' own passes, so
// that nobody has to read the tensors once more. A tensor is taken again when its node is done.

// What a stage's backward pass is given, beside what the forward pass was, and what it writes; null for what nobody needs.
struct StageGradients {
  const void* grad;             // like a node's output
  const float *const *kernels;  // of the depthwise convolutions, [in][9]
  const float *const *matrices;  // of the 1x1 convolutions, [out][in]
  void* x_grad;
  float *edge_weight_grads, *norm_weight_grads, *norm_bias_grads;  // [edges] and twice [nodes][channels]
  float *const *kernel_grads, *const *matrix_grads;                // only a matrix's may be null
};

template <class T> class StageBackward {
  const StageArguments& s;
  const StageGradients& g;
  const Shape inner;
  const int64_t pixels;
  std::vector<float> scale, shift;  // of the nodes' BN

  struct Received {
    T* grad = nullptr;
    std::vector<double> total, dot;
  };
  std::vector<Received> received;  // by each node
  std::vector<std::unique_ptr<Scratch<T>>> tensors;
  std::vector<T*> free;

 public:
  StageBackward(const StageArguments& s, const StageGradients& g)
      : s(s), g(g), inner(s.inner()), pixels(s.batch * inner.height * inner.width), scale(s.num_nodes * s.channels),
        shift(s.num_nodes * s.channels), received(s.num_nodes) {}

  void run() {
    const T* const grad = static_cast<const T*>(g.grad);
    std::vector<bool> is_output(s.num_nodes);
    for (int64_t k = 0; k < s.num_outputs; k++) is_output[s.outputs[k]] = true;
    int64_t source = 0, edge = 0;
    for (int64_t i = 0; i < s.num_nodes; i++) {
      const int64_t row = i * s.channels;
      normalisation(s, i, s.mean + row, s.variance + row, &scale[row], &shift[row]);
      source += s.in_degrees[i];
      if (s.in_degrees[i] > 1) edge += s.in_degrees[i];
    }
    for (int64_t i = s.num_nodes - 1; i >= 0; i--) {
      source -= s.in_degrees[i];
      if (s.in_degrees[i] > 1) edge -= s.in_degrees[i];
      Received& mine = received[i];
      float share = 1;
      if (is_output[i]) {
        share = 1.0f / s.num_outputs;
        share = receive_output(mine, grad, static_cast<const T*>(s.nodes[i]), share);
      }
      node(i, source, edge, mine.grad != nullptr ? mine.grad : grad, share);
      if (mine.grad != nullptr) free.push_back(mine.grad);
    }
  }

 private:
  // An output node's part of the stage's gradient; returns what that is yet to be multiplied by.
  float receive_output(Received& mine, const T* grad, const T* out, float share) {
    const std::vector<double> sums = sums_and_products(grad, out, pixels, s.channels);
    const bool alone = mine.grad == nullptr;
    if (alone) mine.total.assign(s.channels, 0.0), mine.dot.assign(s.channels, 0.0);
    for (int64_t c = 0; c < s.channels; c++) {
      mine.total[c] += share * sums[c];
      mine.dot[c] += share * sums[s.channels + c];
    }
    if (alone) return share;
    const T* both[] = {mine.grad, grad};  // a node that others read, too
    const float weights[] = {1, share}, *none[] = {nullptr, nullptr};
    sum(Sum<T>(both, 2, weights, none, none, s.channels), mine.grad, pixels, s.channels);
    return 1;
  }

  void node(int64_t i, int64_t first_source, int64_t first_edge, const T* grad, float share) {
    const Received& mine = received[i];
    const int64_t row = i * s.channels, count = s.in_degrees[i];
    // Through BN: the gradient before it is before * grad + slope * out + constant.
    std::vector<float> before(s.channels), slope(s.channels), constant(s.channels);
    for (int64_t c = 0; c < s.channels; c++) {
      const double mean = s.mean[row + c], inv_std = 1 / std::sqrt(s.variance[row + c] + s.eps[i]);
      const double weight_grad = (mine.dot[c] - mean * mine.total[c]) * inv_std, a = s.norm_weight[row + c] * inv_std;
      g.norm_weight_grads[row + c] = weight_grad;
      g.norm_bias_grads[row + c] = mine.total[c];
      const double b = -a * inv_std * weight_grad / pixels;
      before[c] = a * share;
      slope[c] = b;
      constant[c] = -a * mine.total[c] / pixels - b * mean;
    }
    Terms<T> terms;
    std::vector<T*> edge_grads;
    std::vector<uint8_t> first;
    const int64_t* const sources = s.sources + first_source;
    for (int64_t k = 0; k < count; k++) {
      terms.add(s, sources[k], count > 1 ? s.edge_weights[first_edge + k] : 1.0f, scale.data(), shift.data());
      first.push_back(sources[k] < 0 ? !x_is_there : received[sources[k]].grad == nullptr);
      edge_grads.push_back(gradient_of(sources[k]));
    }
    const bool reads_input = sources[0] < 0;
    const Shape shape = reads_input ? s.input() : inner;
    const Sum<T> sum_of = terms.sum(shape.channels);
    const T* const out = s.of_batch[i] ? static_cast<const T*>(s.nodes[i]) : nullptr;
    const NodeGradient<T> of{sum_of, g.kernels[i], g.matrices[i], grad, out, before.data(), slope.data(),
                             constant.data(), terms.weights.data(), edge_grads.data(), first.data(),
                             g.matrix_grads[i], g.kernel_grads[i]};
    const SumsOfGradient sums = NodeBackward<T>(of, shape, s.channels).run();
    if (reads_input) return;
    for (int64_t k = 0; k < count; k++) {
      Received& its = received[sources[k]];
      const float *its_scale = &scale[sources[k] * s.channels], *its_shift = &shift[sources[k] * s.channels];
      double of_weight = 0;
      for (int64_t c = 0; c < s.channels; c++) {
        const double dot = sums.dots[k * s.channels + c];
        of_weight += its_scale[c] * dot + its_shift[c] * sums.total[c];
        its.total[c] += terms.weights[k] * sums.total[c];
        its.dot[c] += terms.weights[k] * dot;
      }
      if (count > 1) g.edge_weight_grads[first_edge + k] = of_weight;
    }
  }

  bool x_is_there = false;

  // Where a source's gradient is added up; null where nobody needs it.
  T* gradient_of(int64_t source) {
    if (source < 0) {
      x_is_there = true;
      return static_cast<T*>(g.x_grad);
    }
    Received& its = received[source];
    if (its.grad == nullptr) {
      if (free.empty()) {
        tensors.push_back(std::make_unique<Scratch<T>>(pixels * s.channels));
        free.push_back(tensors.back()->data);
      }
      its.grad = free.back();
      free.pop_back();
      its.total.assign(s.channels, 0.0);
      its.dot.assign(s.channels, 0.0);
    }
    return its.grad;
  }
};
