// The backward pass of a node: from the gradient behind its BN to those of its matrix, its kernel and its sources.
//
// Included by kernels.cpp, whose vectors and sums it uses. The batch is taken in groups of images that stay in the
// caches. For each group, in this order:
//   1. the sums of the sources are computed again, and `inner`, the gradient before BN;
//   2. `hidden`, the depthwise convolution of the sums, likewise;
//   3. the gradient of the 1x1 convolution's matrix is inner^T hidden;
//   4. tile by tile, the gradient of hidden goes through the depthwise convolution and the ReLU while it is in the
//      second cache.
// What comes out is the gradient of the sum: one tensor, from which each source takes what it gets by its edge, when
// its own turn comes. That is one tensor written a node, where adding to each source's would read and write one an edge.
// What lies between the steps is laid out in blocks of LANES channels, [block][pixels][LANES], so that each loop walks
// over pixels with everything of its block in registers.

// The elements that matrices are multiplied in, and how many pixels' (or inputs') elements one multiplication takes.
template <class E> constexpr int64_t PAIRED = step_of(static_cast<E*>(nullptr));

#ifdef __AVX512F__
constexpr int TILE_VECTORS = 3, TILE_ROWS = 8;  // sums in registers: 24 of 32
#else
constexpr int TILE_VECTORS = 1, TILE_ROWS = 4;  // a vector is two registers: 8 of 16
#endif

constexpr int64_t GROUP_BYTES = 1 << 20;  // of images between the steps, for each thread: about its second cache
constexpr int64_t AHEAD = 4096;           // bytes: a sum's inputs are fetched a page before their time
constexpr int64_t FEWEST_PIXELS = 96;     // of a tile: the matrix comes from the last cache once for all of them

// Memory that is not set to anything.
template <class T> struct Scratch {
  T* data;
  explicit Scratch(int64_t size) : data(static_cast<T*>(::operator new(size * sizeof(T) + 64, std::align_val_t(64)))) {}
  Scratch(const Scratch&) = delete;
  ~Scratch() { ::operator delete(data, std::align_val_t(64)); }
};

template <class T> void clear(T* data, int64_t size) { std::memset(static_cast<void*>(data), 0, size * sizeof(T)); }

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The vectors of some pixels, one after the other.
ALWAYS void store_plain(float* to, const Vec (&value)[1]) { store_all(to, value[0]); }
ALWAYS void store_plain(bfloat16* to, const Vec (&value)[2]) {
#ifdef __AVX512BF16__
  _mm512_storeu_si512(to, narrow_two(value[0], value[1]));
#else
  store_all(to, value[0]);
  store_all(to + LANES, value[1]);
#endif
}

// sums[m][v] += a[m] * b[v] for M elements, or pairs, of a that lie APART elements from each other.
template <int M, int V, int64_t APART, class E>
ALWAYS void outer_product(Vec (&sums)[M][V], const E* a, const E* b, int64_t next_vector) {
#pragma GCC unroll 16
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) sums[m][v] = multiply_add(sums[m][v], a + m * APART, b + v * next_vector);
}

// Calls run with COUNT as a constant: 1 to MOST.
template <int MOST, class Run> ALWAYS void with_constant(int64_t count, Run run) {
  if constexpr (MOST > 1)
    if (count < MOST) return with_constant<MOST - 1>(count, run);
  run(std::integral_constant<int, MOST>());
}

// Where a panel of at most TILE_VECTORS blocks begins; no panel is narrower than it has to be.
ALWAYS int64_t panel_block(int64_t blocks, int64_t panel) {
  const int64_t panels = ceil_div(blocks, TILE_VECTORS);
  return blocks * panel / panels;
}

// A weighted sum, vector by vector in the order of memory, for which this is as fast as the data come: U pixels at a
// time, emit(first pixel, block, values).
template <int U, class T, class Emit>
ALWAYS void over_sum(const Sum<T>& sum_of, int64_t first, int64_t size, int64_t channels, Emit emit) {
  const int64_t lanes = padded(channels);
  with_constant<5>(sum_of.count, [&](auto constant) INLINED {
    constexpr int K = decltype(constant)::value;
    const int64_t k_end = K < 5 ? K : sum_of.count;
    for (int64_t x = 0; x < size; x += U) {
      auto vectors = [&](int64_t c, int64_t n) INLINED {
        Vec value[U];
        for (int u = 0; u < U; u++) value[u] = load_all(sum_of.bias.data + c);
        for (int64_t k = 0; k < k_end; k++) {
          const Vec weight = load_all(sum_of.weights.data + k * lanes + c);
          const T* const from = sum_of.inputs[k] + (first + x) * channels + c;
          for (int u = 0; u < U; u++) {
            __builtin_prefetch(reinterpret_cast<const char*>(from + u * channels) + AHEAD, 0, 2);
            value[u] += weight * load(from + u * channels, n);
          }
        }
        emit(x, c / LANES, value);
      };
      int64_t c = 0;
      for (; c + LANES <= channels; c += LANES) vectors(c, LANES);
      if (c < channels) vectors(c, channels - c);
    }
  });
}

// A matrix [out][in] as panels for the product from the right with gradients of out: [out / PAIRED][inputs][PAIRED].
template <class E>
NEVER_INLINED void pack_transposed(const float* matrix, int64_t in_channels, int64_t out_channels, E* packed) {
  constexpr int64_t step = PAIRED<E>;
  const int64_t blocks = padded(in_channels) / LANES, panels = ceil_div(blocks, TILE_VECTORS);
  const int64_t depth = ceil_div(out_channels, step) * step;
#pragma omp for schedule(static)
  for (int64_t panel = 0; panel < panels; panel++) {
    const int64_t begin = panel_block(blocks, panel), end = panel_block(blocks, panel + 1);
    E* to = packed + begin * LANES * depth;
    for (int64_t o = 0; o < out_channels; o += step)
      for (int64_t block = begin; block < end; block++, to += LANES * step) {
        const float* from = matrix + o * in_channels + block * LANES;
        const int64_t n = std::min(LANES, in_channels - block * LANES);
        store_step(to, load(from, n), o + 1 < out_channels ? load(from + (step - 1) * in_channels, n) : zeros());
      }
  }
}

// One row of a depthwise 3x3 convolution for one block: emit(x, value) for each output. `rows` point at the padding.
template <int S, int U, class E, class Emit>
ALWAYS int64_t convolve_pixels(const E* const* rows, int64_t dilation, const Vec* w, int64_t x, int64_t width,
                               Emit emit) {
  for (; x + U <= width; x += U) {
    Vec sums[U];
    for (int u = 0; u < U; u++) sums[u] = zeros();
    for (int ky = 0; ky < 3; ky++) {
      const E* from = rows[ky] + x * S * LANES;
      if (S == 1 && dilation == 1) {
        Vec taps[U + 2];
        for (int u = 0; u < U + 2; u++) taps[u] = load_all(from + u * LANES);
        for (int kx = 0; kx < 3; kx++)
          for (int u = 0; u < U; u++) sums[u] += w[ky * 3 + kx] * taps[u + kx];
      } else {
        for (int kx = 0; kx < 3; kx++)
          for (int u = 0; u < U; u++) sums[u] += w[ky * 3 + kx] * load_all(from + (u * S + kx * dilation) * LANES);
      }
    }
    for (int u = 0; u < U; u++) emit(x + u, sums[u]);
  }
  return x;
}

template <int S, class E, class Emit>
ALWAYS void convolve_row(const E* const* rows, int64_t dilation, const Vec* w, int64_t width, Emit emit) {
  int64_t x = 0;
  if (width % 7 == 0) x = convolve_pixels<S, 7>(rows, dilation, w, x, width, emit);
  x = convolve_pixels<S, 4>(rows, dilation, w, x, width, emit);
  x = convolve_pixels<S, 2>(rows, dilation, w, x, width, emit);
  convolve_pixels<S, 1>(rows, dilation, w, x, width, emit);
}

// What a node's backward pass is given; E is what its data are multiplied in.
template <class T> struct NodeGradient {
  const Sum<T>& sum_of;
  const float* kernel;               // [in][9]
  const float* matrix;               // [out][in]
  const Sum<T>& inner;               // the gradient before BN
  T* sum_grad;                       // of the sum, like a source; null if nobody needs it
  bool add;                          // to what is in sum_grad
  bool dots;                         // somebody needs those of SumsOfGradient
  float *matrix_grad, *kernel_grad;  // matrix_grad may be null
};

// What the sources' own backward passes and the edges' weights need: sums over all pixels, per channel.
struct SumsOfGradient {
  std::vector<double> dots, total;  // of sum_grad * inputs[k], [k][in], and of sum_grad, [in]
};

template <class T> class NodeBackward {
  typedef typename Operand<T>::type E;
  static constexpr int64_t step = PAIRED<E>;

  const NodeGradient<T>& of;
  const Shape s;
  const int64_t stride, in_channels, out_channels, in_blocks, out_blocks, d, out_height, out_width;
  const int64_t pixels;  // of an output image, in whole pairs
  const int64_t row;     // elements of a row of sums of one block, padding included
  const int64_t count;
  int64_t group;         // images at a time
  int64_t next;          // elements from block to block of them
  const int threads;
  // Tiles of the last step: some images, or some rows of one.
  int64_t tile_images, tile_rows, tile_slots;
  int64_t some_rows;  // that go through the depthwise convolution and the edges at a time
  const Buffer<float> kernel;

 public:
  NodeBackward(const NodeGradient<T>& of, Shape s, int64_t out_channels)
      : of(of), s(s), stride(s.stride), in_channels(s.channels), out_channels(out_channels),
        in_blocks(padded(s.channels) / LANES),
        out_blocks(padded(out_channels) / LANES), d(s.dilation), out_height(s.out_height()), out_width(s.out_width()),
        pixels(ceil_div(out_height * out_width, step) * step), row((s.width + 2 * d) * LANES), count(of.sum_of.count),
        threads(max_threads()), kernel(pack_kernel(of.kernel, s.channels)) {
    // A group's data, about: not much more than the second caches hold.
    const int64_t image_bytes = sizeof(E) * LANES *
        (in_blocks * ((s.height + 2 * d) * (s.width + 2 * d) + pixels) + out_blocks * pixels * step);
    group = std::max<int64_t>(threads * GROUP_BYTES / image_bytes, 1);
    group = std::min(ceil_div(group, threads) * threads, s.batch);
    // A cache line more than the data: maps have powers of two of pixels, and blocks that lie a multiple of 4 KiB apart
    // would all have the same few places in the first cache.
    next = group * pixels * LANES + 64 / int64_t(sizeof(E));
    // A tile's sources and the gradient of their sum, about.
    const int64_t pixel_bytes = LANES * in_blocks * ((count + 1) * sizeof(T) + 2 * sizeof(E));
    const int64_t tile = std::max<int64_t>(TILE_BYTES / pixel_bytes, FEWEST_PIXELS);
    tile_rows = std::clamp<int64_t>(tile / s.width, 1, s.height);
    tile_images = 1;
    if (tile_rows == s.height)
      tile_images = std::clamp<int64_t>(tile / (s.height * s.width), 1, ceil_div(group, threads));
    else
      tile_rows = ceil_div(s.height, ceil_div(s.height, tile_rows));
    some_rows = std::clamp<int64_t>(56 / s.width, 1, tile_rows);
    tile_slots = tile_rows == s.height ? tile_images * out_height : (tile_rows - 1 + 2 * d) / stride + 2;
  }

  SumsOfGradient run() {
    Scratch<E> packed(padded(in_channels) * (out_channels + 1)), sums(group * sum_image());
    Scratch<E> inner(out_blocks * next), hidden(in_blocks * next), inner_pairs(step > 1 ? out_blocks * next : 0);
    const int64_t grad_rows = padded(out_channels), lanes = padded(in_channels);
    Scratch<float> matrix_grad(of.matrix_grad ? grad_rows * lanes : 0);
    std::vector<std::vector<double>> kernels(threads), dots(threads), totals(threads);
#pragma omp parallel num_threads(threads)
    {
      const int me = thread_number();
      pack_transposed(of.matrix, in_channels, out_channels, packed.data);
      clear_padding(sums.data, inner.data, hidden.data);
      Tile tile(*this);
      for (int64_t begin = 0; begin < s.batch; begin += group) {
        const int64_t images = std::min(group, s.batch - begin);
        compute_sums(begin, images, sums.data);
        compute_inner(begin, images, inner.data, of.matrix_grad ? inner_pairs.data : nullptr);
#pragma omp barrier
        if (of.matrix_grad) {
          if (stride == 1) compute_hidden<1>(images, sums.data, hidden.data);
          else compute_hidden<2>(images, sums.data, hidden.data);
#pragma omp barrier
          add_matrix_gradient(images, step > 1 ? inner_pairs.data : inner.data, hidden.data, begin == 0,
                              matrix_grad.data);
        }
        through_tiles(begin, images, packed.data, sums.data, inner.data, tile);
#pragma omp barrier
      }
      kernels[me] = std::move(tile.kernel_sums), dots[me] = std::move(tile.dot_sums);
      totals[me] = std::move(tile.total_sums);
      if (of.matrix_grad) {
#pragma omp for schedule(static)
        for (int64_t o = 0; o < out_channels; o++)
          std::copy_n(matrix_grad.data + o * lanes, in_channels, of.matrix_grad + o * in_channels);
      }
    }
    const std::vector<double> taps = reduce(kernels, 9, in_channels);
    for (int64_t c = 0; c < in_channels; c++)
      for (int64_t tap = 0; tap < 9; tap++) of.kernel_grad[c * 9 + tap] = taps[tap * in_channels + c];
    return {reduce(dots, count, in_channels), reduce(totals, 1, in_channels)};
  }

 private:
  int64_t sum_row() const { return in_blocks * row; }  // of all blocks, one after the other
  int64_t sum_image() const { return (s.height + 2 * d) * sum_row(); }

  // The padding of sums, and what is added to an image for the sake of whole pairs: zeros for good.
  void clear_padding(E* sums, E* inner, E* hidden) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < group * (s.height + 2 * d); i++) {
      E* at = sums + i * sum_row();
      const int64_t y = i % (s.height + 2 * d) - d;
      if (y < 0 || y >= s.height) clear(at, sum_row());
      else
        for (int64_t block = 0; block < in_blocks; block++, at += row) {
          clear(at, d * LANES);
          clear(at + row - d * LANES, d * LANES);
        }
    }
    const int64_t real = out_height * out_width;
    if (pixels == real) return;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < (in_blocks + out_blocks) * group; i++) {
      const int64_t block = i / group, image = i % group;
      E* at = (block < in_blocks ? hidden + block * next : inner + (block - in_blocks) * next) + image * pixels * LANES;
      clear(at + (pixels - step) * LANES, step * LANES);
    }
  }

  NEVER_INLINED void compute_sums(int64_t begin, int64_t images, E* sums) {
#pragma omp for schedule(static) nowait
    for (int64_t task = 0; task < images * s.height; task++) {
      const int64_t image = task / s.height, y = task % s.height;
      E* const start = sums + image * sum_image() + (y + d) * sum_row() + d * LANES;
      over_sum<1>(of.sum_of, ((begin + image) * s.height + y) * s.width, s.width, in_channels,
                  [&](int64_t x, int64_t block, const Vec (&value)[1]) INLINED {
                    store_all(start + block * row + x * LANES, relu(value[0]));
                  });
    }
  }

  // The gradient before BN, pixel by pixel and, for the gradient of the matrix, in pairs of pixels.
  NEVER_INLINED void compute_inner(int64_t begin, int64_t images, E* inner, E* pairs) {
    const int64_t real = out_height * out_width;
    const int64_t some = 128, parts = ceil_div(real, some);
#pragma omp for schedule(static) nowait
    for (int64_t task = 0; task < images * parts; task++) {
      const int64_t image = task / parts, first = task % parts * some, size = std::min(some, real - first);
      const int64_t start = (image * pixels + first) * LANES, pixel = (begin + image) * real + first;
      const int64_t whole = size / step * step;
      auto some_pixels = [&](int64_t x, int64_t block, const Vec (&value)[step]) INLINED {
        const int64_t at = start + block * next + x * LANES;
        store_plain(inner + at, value);
        if (step > 1 && pairs) store_step(pairs + at, value[0], value[step - 1]);
      };
      auto last_pixel = [&](int64_t, int64_t block, const Vec (&value)[1]) INLINED {  // of an odd number
        const int64_t at = start + block * next + whole * LANES;
        store_all(inner + at, value[0]);
        if (step > 1 && pairs) store_step(pairs + at, value[0], zeros());
      };
      over_sum<step>(of.inner, pixel, whole, out_channels, some_pixels);
      over_sum<1>(of.inner, pixel + whole, size - whole, out_channels, last_pixel);
    }
  }

  // The depthwise convolution of the sums, in pairs of pixels.
  template <int S> void compute_hidden(int64_t images, const E* sums, E* hidden) {
    // Some rows at a time, which end with whole pairs and stay in the first cache.
    const int64_t rows = std::max<int64_t>(128 / out_width, 1) * step, parts = ceil_div(out_height, rows);
    Scratch<float> plain(step > 1 ? (rows * out_width + step) * LANES : 0);
#pragma omp for schedule(static) nowait
    for (int64_t task = 0; task < images * parts; task++) {
      const int64_t image = task / parts, begin = task % parts * rows, end = std::min(begin + rows, out_height);
      for (int64_t block = 0; block < in_blocks; block++) {
        const E* image_sums = sums + image * sum_image() + block * row;
        E* to = hidden + block * next + (image * pixels + begin * out_width) * LANES;
        Vec w[9];
        for (int tap = 0; tap < 9; tap++) w[tap] = load_all(kernel.data + tap * padded(in_channels) + block * LANES);
        for (int64_t y = begin; y < end; y++) {
          const E* from[3];
          for (int ky = 0; ky < 3; ky++) from[ky] = image_sums + (y * S + ky * d) * sum_row();
          const int64_t start = (y - begin) * out_width * LANES;
          convolve_row<S>(from, d, w, out_width, [&](int64_t x, Vec value) INLINED {
            if constexpr (step > 1) store_all(plain.data + start + x * LANES, value);
            else store_all(to + start + x * LANES, value);
          });
        }
        if constexpr (step > 1) {
          const int64_t size = (end - begin) * out_width;
          if (size % step) clear(plain.data + size * LANES, LANES);
          for (int64_t x = 0; x < size; x += step)
            store_step(to + x * LANES, load_all(plain.data + x * LANES), load_all(plain.data + (x + 1) * LANES));
        }
      }
    }
  }

  // matrix_grad[padded out][padded in] (+)= inner^T hidden over the pixels of a group.
  void add_matrix_gradient(int64_t images, const E* inner, const E* hidden, bool first, float* matrix_grad) {
    const int64_t lanes = padded(in_channels), depth = images * pixels / step;
    const int64_t panels = ceil_div(in_blocks, TILE_VECTORS);
    const int64_t parts = std::clamp<int64_t>(ceil_div(4 * threads, panels), 1, out_blocks);
    constexpr int64_t near = 192;  // steps at a time: a panel's elements stay in the first caches
#pragma omp for schedule(static) nowait
    for (int64_t task = 0; task < panels * parts; task++) {
      const int64_t panel = task / parts, part = task % parts;
      const int64_t start = panel_block(in_blocks, panel), width = panel_block(in_blocks, panel + 1) - start;
      for (int64_t begin = 0; begin < depth; begin += near) {
        const int64_t end = std::min(begin + near, depth);
        for (int64_t block = out_blocks * part / parts; block < out_blocks * (part + 1) / parts; block++)
          for (int64_t o = 0; o < LANES && block * LANES + o < out_channels; o += TILE_ROWS)
            with_constant<TILE_VECTORS>(width, [&](auto constant) {
              constexpr int M = TILE_ROWS, V = decltype(constant)::value;
              float* to = matrix_grad + (block * LANES + o) * lanes + start * LANES;
              Vec sums[M][V];
#pragma GCC unroll 16
              for (int m = 0; m < M; m++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) sums[m][v] = zeros();
              const E* a = inner + block * next + begin * LANES * step + o * step;
              const E* b = hidden + start * next + begin * LANES * step;
              for (int64_t i = begin; i < end; i++, a += LANES * step, b += LANES * step)
                outer_product<M, V, step>(sums, a, b, next);
              const bool add = !first || begin > 0;
#pragma GCC unroll 16
              for (int m = 0; m < M; m++)
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) {
                  float* at = to + m * lanes + v * LANES;
                  store_all(at, add ? load_all(at) + sums[m][v] : sums[m][v]);
                }
            });
      }
    }
  }

  // What a thread keeps while it goes through its tiles.
  struct Tile {
    int64_t in_slot;             // of one block, padding included
    Scratch<float> grads;        // [slots + 1][block][padded width][LANES]: rows of hidden's gradient, one for waste
    Buffer<float> outside;           // a row of zeros
    Buffer<float> row_grad;      // [padded width][LANES]: of one row of one block, where there is a stride
    Scratch<float> grad_of_sum;  // [block][pixels][LANES]: of some rows
    std::vector<int32_t> places;  // of a tile's pixels in grads
    Buffer<float> kernel_now, dot_now, total_now;  // of a tile
    std::vector<double> kernel_sums, dot_sums, total_sums;
    explicit Tile(const NodeBackward& node)
        : in_slot((node.out_width + 2 * node.d) * LANES),
          grads((node.tile_slots + 1) * node.in_blocks * in_slot), outside(in_slot),
          row_grad((node.s.width + 2 * node.d) * LANES),
          grad_of_sum(node.in_blocks * node.some_rows * node.s.width * LANES), kernel_now(9 * padded(node.in_channels)),
          dot_now(node.count * padded(node.in_channels)), total_now(padded(node.in_channels)),
          kernel_sums(9 * padded(node.in_channels), 0.0), dot_sums(node.count * padded(node.in_channels), 0.0),
          total_sums(padded(node.in_channels), 0.0) {
      clear(grads.data, (node.tile_slots + 1) * node.in_blocks * in_slot);
    }
    void flush() {
      auto add = [](Buffer<float>& now, std::vector<double>& sums) {
        for (size_t i = 0; i < sums.size(); i++) sums[i] += now.data[i];
        clear(now.data, sums.size());
      };
      add(kernel_now, kernel_sums), add(dot_now, dot_sums), add(total_now, total_sums);
    }
  };

  // Brings a tile's sources, and where the gradient goes, into the second cache, some lines at a time.
  struct Fetch {
    const NodeGradient<T>& of;
    const int64_t start, bytes;  // in elements and bytes, from the beginning of each tensor
    int64_t done = 0, at_once = 0;
    Fetch(const NodeGradient<T>& of, int64_t start, int64_t bytes) : of(of), start(start), bytes(bytes) {}
    void spread_over(int64_t times) { at_once = ceil_div(ceil_div(bytes, 64), times) * 64; }
    ALWAYS void some() {
      const int64_t end = std::min(done + at_once, bytes);
      if (of.dots)
        for (int64_t k = 0; k < of.sum_of.count; k++)
          for (int64_t at = done; at < end; at += 64)
            __builtin_prefetch(reinterpret_cast<const char*>(of.sum_of.inputs[k] + start) + at, 0, 2);
      if (of.sum_grad)
        for (int64_t at = done; at < end; at += 64)
          __builtin_prefetch(reinterpret_cast<const char*>(of.sum_grad + start) + at, 1, 2);
      done = end;
    }
  };

  void through_tiles(int64_t begin, int64_t images, const E* packed, const E* sums, const E* inner, Tile& tile) {
    const bool whole = tile_rows == s.height;
    const int64_t parts = whole ? 1 : ceil_div(s.height, tile_rows);
    const int64_t tiles = whole ? ceil_div(images, tile_images) : images * parts;
    const int64_t me = thread_number(), all = num_threads();
    int64_t image_before = -1, rows_before = 0;  // up to where an image's rows of hidden's gradient are there
    for (int64_t t = tiles * me / all; t < tiles * (me + 1) / all; t++) {
      const int64_t i0 = whole ? t * tile_images : t / parts, i1 = whole ? std::min(i0 + tile_images, images) : i0 + 1;
      const int64_t y0 = whole ? 0 : t % parts * tile_rows, y1 = whole ? s.height : std::min(y0 + tile_rows, s.height);
      // Rows of output that these rows of input have gone to.
      int64_t r0 = std::max<int64_t>(ceil_div(std::max<int64_t>(y0 - d, 0), stride), 0);
      const int64_t r1 = std::min((y1 - 1 + d) / stride + 1, out_height);
      const int64_t new_r0 = image_before == i0 ? std::max(rows_before, r0) : r0;
      // What the dots of this tile read comes from afar while the product keeps the processor busy.
      Fetch fetch(of, ((begin + i0) * s.height + y0) * s.width * in_channels,
                  (whole ? (i1 - i0) * s.height : y1 - y0) * s.width * in_channels * int64_t(sizeof(T)));
      multiply_tile(i0, i1, new_r0, r1, packed, inner, tile, fetch);
      if (!whole) image_before = i0, rows_before = r1;
      for (int64_t image = i0; image < i1; image++)
        for (int64_t y = y0; y < y1; y += some_rows) {
          const int64_t end = std::min(y + some_rows, y1);
          for (int64_t block = 0; block < in_blocks; block++) {
            const E* image_sums = sums + image * sum_image() + block * row;
            if (stride == 1) {
              kernel_gradient<1>(image_sums, image - i0, y, end, block, tile);
              gradient_of_sum<1>(image_sums, image - i0, y, end, block, tile);
            } else {
              kernel_gradient<2>(image_sums, image - i0, ceil_div(y, 2), ceil_div(end, 2), block, tile);
              gradient_of_sum<2>(image_sums, image - i0, y, end, block, tile);
            }
          }
          const int64_t first_pixel = ((begin + image) * s.height + y) * s.width, size = (end - y) * s.width;
          leave_gradient(first_pixel, size, tile);
        }
      tile.flush();
    }
  }

  int64_t slot(int64_t image_in_tile, int64_t r) const {
    return tile_rows == s.height ? image_in_tile * out_height + r : r % tile_slots;
  }

  // Row r of hidden's gradient, from its padding on.
  const float* grad_row(const Tile& tile, int64_t block, int64_t image_in_tile, int64_t r) const {
    if (r < 0 || r >= out_height) return tile.outside.data;
    return tile.grads.data + (slot(image_in_tile, r) * in_blocks + block) * tile.in_slot;
  }

  // Rows r0 to r1 of the gradient of hidden, of images i0 to i1: inner times the matrix.
  NEVER_INLINED void multiply_tile(int64_t i0, int64_t i1, int64_t r0, int64_t r1, const E* packed, const E* inner,
                                   Tile& tile, Fetch& fetch) {
    if (r0 >= r1) return;
    const int64_t first = i0 * pixels + r0 * out_width;
    const int64_t size = i1 - i0 > 1 ? (i1 - i0) * pixels : (r1 - r0) * out_width;
    tile.places.resize(size);
    for (int64_t p = 0; p < size; p++) {
      const int64_t image = p / pixels, at = i1 - i0 > 1 ? p % pixels : p, r = r0 + at / out_width, x = at % out_width;
      const int64_t to = r < r1 ? slot(image, r) : tile_slots;
      tile.places[p] = static_cast<int32_t>(to * in_blocks * tile.in_slot + (d + x) * LANES);
    }
    const int64_t panels = ceil_div(in_blocks, TILE_VECTORS);
    fetch.spread_over(panels * ceil_div(size, TILE_ROWS));
    const int64_t depth = ceil_div(out_channels, step) * step, whole_blocks = depth / LANES, rest = depth % LANES;
    for (int64_t panel = 0; panel < panels; panel++) {
      const int64_t start = panel_block(in_blocks, panel), width = panel_block(in_blocks, panel + 1) - start;
      const E* b_start = packed + start * LANES * depth;
      with_constant<TILE_VECTORS>(width, [&](auto vectors) {
        constexpr int V = decltype(vectors)::value;
        int64_t p = 0;
        auto rows_at_once = [&](auto rows) {
          constexpr int M = decltype(rows)::value;
          for (; p + M <= size; p += M) {
            fetch.some();
            Vec sums[M][V];
#pragma GCC unroll 16
            for (int m = 0; m < M; m++)
#pragma GCC unroll 4
              for (int v = 0; v < V; v++) sums[m][v] = zeros();
            const E *a = inner + (first + p) * LANES, *b = b_start;
            for (int64_t block = 0; block < whole_blocks; block++, a += next)
#pragma GCC unroll 1
              for (int64_t i = 0; i < LANES; i += step, b += V * LANES * step)
                outer_product<M, V, LANES>(sums, a + i, b, LANES * step);
            for (int64_t i = 0; i < rest; i += step, b += V * LANES * step)
              outer_product<M, V, LANES>(sums, a + i, b, LANES * step);
            float* to = tile.grads.data + start * tile.in_slot;
#pragma GCC unroll 16
            for (int m = 0; m < M; m++)
#pragma GCC unroll 4
              for (int v = 0; v < V; v++) store_all(to + v * tile.in_slot + tile.places[p + m], sums[m][v]);
          }
        };
        rows_at_once(std::integral_constant<int, TILE_ROWS>());
        rows_at_once(std::integral_constant<int, TILE_ROWS / 2>());
        rows_at_once(std::integral_constant<int, TILE_ROWS / 4>());
        rows_at_once(std::integral_constant<int, 1>());
      });
    }
  }

  // The kernel's gradient from rows r0 to r1 of output.
  template <int S> NEVER_INLINED
  void kernel_gradient(const E* image_sums, int64_t image_in_tile, int64_t r0, int64_t r1, int64_t block, Tile& tile) {
    float* const now = tile.kernel_now.data + block * LANES;
    const int64_t lanes = padded(in_channels);
    Vec taps[9];
    for (int tap = 0; tap < 9; tap++) taps[tap] = load_all(now + tap * lanes);
    auto all_rows = [&](auto near, auto most) INLINED {
      constexpr bool NEAR = decltype(near)::value;
      for (int64_t r = r0; r < r1; r++) {
        const float* grad = grad_row(tile, block, image_in_tile, r) + d * LANES;
        const E* rows[3];
        for (int ky = 0; ky < 3; ky++) rows[ky] = image_sums + (r * S + ky * d) * sum_row();
        int64_t x = kernel_pixels<S, NEAR, decltype(most)::value>(rows, grad, 0, taps);
        if constexpr (NEAR) x = kernel_pixels<S, NEAR, 2>(rows, grad, x, taps);
        kernel_pixels<S, NEAR, 1>(rows, grad, x, taps);
      }
    };
    if constexpr (S == 1) {
      if (d > 1) all_rows(std::false_type(), std::integral_constant<int, 2>());
      else if (out_width % 7 == 0) all_rows(std::true_type(), std::integral_constant<int, 7>());
      else all_rows(std::true_type(), std::integral_constant<int, 4>());
    } else {
      all_rows(std::false_type(), std::integral_constant<int, 2>());
    }
    for (int tap = 0; tap < 9; tap++) store_all(now + tap * lanes, taps[tap]);
  }

  // Adds what U pixels at a time of a row give; NEAR where neighbouring taps share what they load.
  template <int S, bool NEAR, int U>
  ALWAYS int64_t kernel_pixels(const E* const* rows, const float* grad, int64_t x, Vec (&taps)[9]) const {
    for (; x + U <= out_width; x += U) {
      Vec g[U];
#pragma GCC unroll 7
      for (int u = 0; u < U; u++) g[u] = load_all(grad + (x + u) * LANES);
#pragma GCC unroll 3
      for (int ky = 0; ky < 3; ky++) {
        const E* from = rows[ky] + x * S * LANES;
        if constexpr (NEAR) {
          Vec at[U + 2];
#pragma GCC unroll 9
          for (int u = 0; u < U + 2; u++) at[u] = load_all(from + u * LANES);
#pragma GCC unroll 7
          for (int u = 0; u < U; u++)
#pragma GCC unroll 3
            for (int kx = 0; kx < 3; kx++) taps[ky * 3 + kx] += g[u] * at[u + kx];
        } else {
#pragma GCC unroll 7
          for (int u = 0; u < U; u++)
#pragma GCC unroll 3
            for (int kx = 0; kx < 3; kx++) taps[ky * 3 + kx] += g[u] * load_all(from + (u * S + kx * d) * LANES);
        }
      }
    }
    return x;
  }

  // Rows y0 to y1 of the gradient of the sum, before the ReLU.
  template <int S> NEVER_INLINED
  void gradient_of_sum(const E* image_sums, int64_t image_in_tile, int64_t y0, int64_t y1, int64_t block, Tile& tile) {
    const int64_t c = block * LANES, lanes = padded(in_channels);
    Vec w[9];  // of the transposed convolution
    for (int tap = 0; tap < 9; tap++) w[tap] = load_all(kernel.data + (S == 1 ? 8 - tap : tap) * lanes + c);
    Vec total = load_all(tile.total_now.data + c);
    for (int64_t y = y0; y < y1; y++) {
      const E* sum = image_sums + (y + d) * sum_row() + d * LANES;
      float* const to = tile.grad_of_sum.data + (block * some_rows + y - y0) * s.width * LANES;
      auto rectify = [&](int64_t x, Vec value) INLINED {
        const Vec masked = load_all(sum + x * LANES) <= 0 ? zeros() : value;  // as torch treats NaN
        total += masked;
        store_all(to + x * LANES, masked);
      };
      if constexpr (S == 1) {
        const float* rows[3];
        for (int ky = 0; ky < 3; ky++) rows[ky] = grad_row(tile, block, image_in_tile, y + (ky - 1) * d);
        convolve_row<1>(rows, d, w, s.width, rectify);
      } else {
        transposed_row(tile, block, image_in_tile, y, w);
        for (int64_t x = 0; x < s.width; x++) rectify(x, load_all(tile.row_grad.data + (d + x) * LANES));
      }
    }
    store_all(tile.total_now.data + c, total);
  }

  // Writes it, and takes its dots with the sources: in the order of memory.
  NEVER_INLINED void leave_gradient(int64_t first_pixel, int64_t size, Tile& tile) {
    const int64_t first = first_pixel * in_channels, lanes = padded(in_channels), next = some_rows * s.width * LANES;
    T* const to = of.sum_grad ? of.sum_grad + first : nullptr;
    const int64_t dots = of.dots ? count : 0;
    with_constant<6>(dots + 1, [&](auto constant) INLINED {
      constexpr int K = decltype(constant)::value - 1, MOST = 5;  // sources; those above are a loop
      const T* inputs[K + 1];  // which nothing that is written to can change
#pragma GCC unroll 5
      for (int k = 0; k < K; k++) inputs[k] = of.sum_of.inputs[k] + first;
      float* const dots_at = tile.dot_now.data;
      const bool add = of.add;
      auto pixels_at_once = [&](auto constant, int64_t x) INLINED {
        constexpr int U = decltype(constant)::value;
        for (; x + U <= size; x += U) {
          const float* g = tile.grad_of_sum.data + x * LANES;
          auto block = [&](int64_t c, int64_t n) INLINED {
            const int64_t at = x * in_channels + c;
            Vec value[U];
#pragma GCC unroll 4
            for (int u = 0; u < U; u++) value[u] = load_all(g + u * LANES);
            auto take_dot = [&](int64_t k, const T* input) INLINED {
              float* const dot_at = dots_at + k * lanes + c;
              Vec dot = load_all(dot_at);
#pragma GCC unroll 4
              for (int u = 0; u < U; u++) dot += value[u] * load(input + at + u * in_channels, n);
              store_all(dot_at, dot);
            };
#pragma GCC unroll 5
            for (int k = 0; k < K; k++) take_dot(k, inputs[k]);
            if constexpr (K == MOST)
              for (int64_t k = K; k < dots; k++) take_dot(k, of.sum_of.inputs[k] + first);
            if (to)
#pragma GCC unroll 4
              for (int u = 0; u < U; u++) {
                T* const pixel = to + at + u * in_channels;
                store(pixel, add ? value[u] + load(pixel, n) : value[u], n);
              }
            g += next;
          };
          int64_t c = 0;
          for (; c + LANES <= in_channels; c += LANES) block(c, LANES);
          if (c < in_channels) block(c, in_channels - c);
        }
        return x;
      };
      const int64_t x = pixels_at_once(std::integral_constant<int, 4>(), 0);
      pixels_at_once(std::integral_constant<int, 1>(), x);
    });
  }

  // Row y of the gradient of a convolution with stride, to row_grad from pixel d on.
  void transposed_row(Tile& tile, int64_t block, int64_t image_in_tile, int64_t y, const Vec* w) {
    float* const g = tile.row_grad.data;
    std::fill(g, g + (s.width + 2 * d) * LANES, 0.0f);
    for (int ky = 0; ky < 3; ky++) {
      const int64_t at = y - (ky - 1) * d;
      if (at < 0 || at % stride != 0 || at / stride >= out_height) continue;
      const float* from = grad_row(tile, block, image_in_tile, at / stride) + d * LANES;
      for (int kx = 0; kx < 3; kx++)
        for (int64_t x = 0; x < out_width; x++) {
          float* to = g + (x * stride + kx * d) * LANES;
          store_all(to, load_all(to) + w[ky * 3 + kx] * load_all(from + x * LANES));
        }
    }
  }
};
