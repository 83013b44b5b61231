// The backward pass of a stage: its nodes from the last to the first. Included by kernels.cpp.
//
// What a node's output receives is a weighted sum: of the gradients that its readers leave, each of the reader's sum of
// sources and hence the same for all of these, and of the stage's own. So is the gradient before its BN. BN needs two
// sums per channel of it, over all pixels and before anybody can read it: of the gradient, and of its product with the
// output. They are sums of such sums, which come out of the readers' own passes. A tensor is taken again when the last
// of the reader's sources is done.

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
  const StageArguments& s;
  const StageGradients& g;
  const Shape inner;
  const int64_t pixels;
  std::vector<float> scale, shift;  // of the nodes' BN

  struct Received {  // by a node's output
    std::vector<int64_t> readers;
    std::vector<const T*> grads;  // from these, and from the stage
    std::vector<float> weights;   // of the edges
    std::vector<double> total, dot;
  };
  std::vector<Received> received;
  std::vector<T*> left;             // by each node, while one of its sources is to come
  std::vector<int64_t> to_come;
  std::vector<std::unique_ptr<Scratch<T>>> tensors;
  std::vector<T*> free;

 public:
  StageBackward(const StageArguments& s, const StageGradients& g)
      : s(s), g(g), inner(s.inner()), pixels(s.batch * inner.height * inner.width), scale(s.num_nodes * s.channels),
        shift(s.num_nodes * s.channels), received(s.num_nodes), left(s.num_nodes), to_come(s.num_nodes) {}

  void run() {
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
      mine.total.resize(s.channels), mine.dot.resize(s.channels);
      if (is_output[i]) receive_output(mine, static_cast<const T*>(s.nodes[i]));
      node(i, source, edge);
      for (const int64_t reader : mine.readers)
        if (--to_come[reader] == 0) free.push_back(left[reader]);
    }
  }

 private:
  // An output node's part of the stage's gradient.
  void receive_output(Received& mine, const T* out) {
    const float share = 1.0f / s.num_outputs;
    const T* const grad = static_cast<const T*>(g.grad);
    const std::vector<double> sums = sums_and_products(grad, out, pixels, s.channels);
    for (int64_t c = 0; c < s.channels; c++) {
      mine.total[c] += share * sums[c];
      mine.dot[c] += share * sums[s.channels + c];
    }
    mine.grads.push_back(grad);
    mine.weights.push_back(share);
  }

  void node(int64_t i, int64_t first_source, int64_t first_edge) {
    Received& mine = received[i];
    const int64_t row = i * s.channels, count = s.in_degrees[i];
    // Through BN: the gradient before it is before * grad + slope * out + constant.
    std::vector<float> before(s.channels), slope(s.channels), constant(s.channels);
    for (int64_t c = 0; c < s.channels; c++) {
      const double mean = s.mean[row + c], inv_std = 1 / std::sqrt(s.variance[row + c] + s.eps[i]);
      const double weight_grad = (mine.dot[c] - mean * mine.total[c]) * inv_std, a = s.norm_weight[row + c] * inv_std;
      g.norm_weight_grads[row + c] = weight_grad;
      g.norm_bias_grads[row + c] = mine.total[c];
      const double b = -a * inv_std * weight_grad / pixels;
      before[c] = a;
      slope[c] = b;
      constant[c] = -a * mine.total[c] / pixels - b * mean;
    }
    std::vector<const float*> scales(mine.grads.size(), before.data()), shifts(mine.grads.size(), nullptr);
    if (s.of_batch[i]) {
      mine.grads.push_back(static_cast<const T*>(s.nodes[i]));
      mine.weights.push_back(1);
      scales.push_back(slope.data()), shifts.push_back(constant.data());
    }
    const Sum<T> before_norm(mine.grads.data(), mine.grads.size(), mine.weights.data(), scales.data(), shifts.data(),
                             s.channels);
    Terms<T> terms;
    const int64_t* const sources = s.sources + first_source;
    for (int64_t k = 0; k < count; k++)
      terms.add(s, sources[k], count > 1 ? s.edge_weights[first_edge + k] : 1.0f, scale.data(), shift.data());
    const bool reads_input = sources[0] < 0;
    const Shape shape = reads_input ? s.input() : inner;
    const Sum<T> sum_of = terms.sum(shape.channels);
    if (!reads_input) left[i] = take(), to_come[i] = count;
    const NodeGradient<T> of{sum_of, g.kernels[i], g.matrices[i], before_norm,
                             reads_input ? static_cast<T*>(g.x_grad) : left[i], reads_input && x_is_there, !reads_input,
                             g.matrix_grads[i], g.kernel_grads[i]};
    const SumsOfGradient sums = NodeBackward<T>(of, shape, s.channels).run();
    if (reads_input) {
      x_is_there = true;
      return;
    }
    for (int64_t k = 0; k < count; k++) {
      Received& its = received[sources[k]];
      its.total.resize(s.channels), its.dot.resize(s.channels);
      const float *its_scale = &scale[sources[k] * s.channels], *its_shift = &shift[sources[k] * s.channels];
      double of_weight = 0;
      for (int64_t c = 0; c < s.channels; c++) {
        const double dot = sums.dots[k * s.channels + c];
        of_weight += its_scale[c] * dot + its_shift[c] * sums.total[c];
        its.total[c] += terms.weights[k] * sums.total[c];
        its.dot[c] += terms.weights[k] * dot;
      }
      if (count > 1) g.edge_weight_grads[first_edge + k] = of_weight;
      its.readers.push_back(i);
      its.grads.push_back(left[i]);
      its.weights.push_back(terms.weights[k]);
    }
  }

  bool x_is_there = false;

  T* take() {
    if (free.empty()) {
      tensors.push_back(std::make_unique<Scratch<T>>(pixels * s.channels));
      free.push_back(tensors.back()->data);
    }
    T* const tensor = free.back();
    free.pop_back();
    return tensor;
  }
};
