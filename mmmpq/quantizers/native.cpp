// Fake quantization with all candidate widths in one pass over the data.
//
// Of x (rows, cols), with u = x / s_j and v = u + z_j for step s_j and offset z_j of
// candidate j:
//   y = sum_j p_j s_j (round(clamp(v, lo_j, hi_j)) - z_j);  lo_j > hi_j: float, p_j x.
// Gradients: see functional.py. The work is cut into blocks that stay in the first cache
// while the candidates pass over them, up to four at a time; sums are taken per block and
// added in one order, so that they do not depend on the number of threads.
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t BLOCK = 2048;
constexpr int LANES = 16, GROUP = 4;
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t wide __attribute__((vector_size(4 * LANES)));
typedef uint16_t half __attribute__((vector_size(2 * LANES)));

inline vec load(const float *p) {
  vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline vec load(const uint16_t *p) {  // bfloat16: the upper half of a float
  half h;
  std::memcpy(&h, p, sizeof h);
  return (vec)(__builtin_convertvector(h, wide) << 16);
}
inline void store(float *p, vec v) { std::memcpy(p, &v, sizeof v); }
inline void store(uint16_t *p, vec v) {
  wide w = (wide)v;
  wide rounded = w + 0x7fff + ((w >> 16) & 1);
  w = (wide)(v == v) ? rounded : w | 0x400000;
  half h = __builtin_convertvector(w >> 16, half);
  std::memcpy(p, &h, sizeof h);
}

// The last values of a row, filled up with zeros.
template <class T>
inline vec load(const T *p, int64_t n) {
  if (n >= LANES) return load(p);
  T padded[LANES] = {};
  std::memcpy(padded, p, n * sizeof(T));
  return load(padded);
}
template <class T>
inline void store(T *p, vec v, int64_t n) {
  if (n >= LANES) return store(p, v);
  T padded[LANES];
  store(padded, v);
  std::memcpy(p, padded, n * sizeof(T));
}

// Operands in this order keep a NaN in v.
inline vec clamp(vec v, float lo, float hi) {
  v = lo > v ? vec{} + lo : v;
  return hi < v ? vec{} + hi : v;
}

// Half to even; exact for |v| < 2^22, which the levels never reach.
inline vec round(vec v) {
  const float shift = 12582912.f;
  return (v + shift) - shift;
}

inline float sum(vec v) {
  float total = 0;
  for (int i = 0; i < LANES; ++i) total += v[i];
  return total;
}

struct Candidate {
  float inverse, offset, lo, hi, p, step;  // step: p_j s_j
};

struct Problem {
  int64_t rows, cols;
  int m;
  const float *scale, *offset, *lo, *hi, *probs;

  bool is_float(int j) const { return lo[j] > hi[j]; }
  float prob(int j) const { return probs ? probs[j] : 1.f; }
  float step(int j, int64_t row) const { return is_float(j) ? 1.f : scale[j * rows + row]; }

  Candidate at(int j, int64_t row) const {
    float s = step(j, row);
    return {1.f / s, offset ? offset[j * rows + row] : 0.f, lo[j], hi[j], prob(j),
            prob(j) * s};
  }
  int64_t per_row() const { return (cols + BLOCK - 1) / BLOCK; }
};

template <int M, bool OFFSET, class T>
void forward_group(const Candidate *c, const T *x, float *total, int64_t n) {
  for (int64_t i = 0; i < n; i += LANES) {
    vec xs = load(x + i, n - i), y = load(total + i);
    for (int j = 0; j < M; ++j) {
      vec v = xs * c[j].inverse;
      if (OFFSET) v += c[j].offset;
      v = round(clamp(v, c[j].lo, c[j].hi));
      if (OFFSET) v -= c[j].offset;
      y += v * c[j].step;
    }
    store(total + i, y);
  }
}

template <bool OFFSET, class T>
void forward_block(const Problem &q, int64_t row, const T *x, T *y, int64_t n) {
  alignas(64) float total[BLOCK] = {};
  Candidate c[GROUP];
  int k = 0;
  for (int j = 0; j < q.m; ++j) {
    if (q.is_float(j)) {
      float p = q.prob(j);
      for (int64_t i = 0; i < n; i += LANES)
        store(total + i, load(total + i) + p * load(x + i, n - i));
    } else {
      c[k++] = q.at(j, row);
    }
    if (k == GROUP || (j + 1 == q.m && k)) {
      switch (k) {
        case 1: forward_group<1, OFFSET>(c, x, total, n); break;
        case 2: forward_group<2, OFFSET>(c, x, total, n); break;
        case 3: forward_group<3, OFFSET>(c, x, total, n); break;
        case 4: forward_group<4, OFFSET>(c, x, total, n); break;
      }
      k = 0;
    }
  }
  for (int64_t i = 0; i < n; i += LANES) store(y + i, load(total + i), n - i);
}

template <bool OFFSET, class T>
void forward(const Problem &q, const T *x, T *y, int threads) {
  int64_t per_row = q.per_row(), blocks = q.rows * per_row;
#pragma omp parallel for schedule(static) num_threads(threads) if (blocks > 8)
  for (int64_t b = 0; b < blocks; ++b) {
    int64_t row = b / per_row, first = b % per_row * BLOCK, at = row * q.cols + first;
    int64_t n = q.cols - first < BLOCK ? q.cols - first : BLOCK;
    forward_block<OFFSET>(q, row, x + at, y + at, n);
  }
}

enum Gradient { LSQ, CLIP, IDENTITY };  // as in functional.py

// Sums of g times: the level less the offset; what the range's gradient takes from it;
// -1 where v is outside.
struct Sums {
  float level, inside, missed;
};

template <int M, bool OFFSET, Gradient GRADIENT, class T>
void backward_group(const Candidate *c, const T *x, const T *g, float *gx, int64_t n,
                    Sums *sums) {
  vec level[M] = {}, inside[M] = {}, missed[M] = {};
  for (int64_t i = 0; i < n; i += LANES) {
    vec xs = load(x + i, n - i), gs = load(g + i, n - i), total = load(gx + i);
    for (int j = 0; j < M; ++j) {
      vec u = xs * c[j].inverse, v = OFFSET ? u + c[j].offset : u;
      vec clamped = clamp(v, c[j].lo, c[j].hi), q = round(clamped);
      if (OFFSET) q -= c[j].offset;
      vec in = clamped == v ? gs : vec{};
      total += (GRADIENT == IDENTITY ? gs : in) * c[j].p;
      level[j] += gs * q;
      inside[j] += in * (GRADIENT == CLIP ? q : u);
      if (OFFSET) missed[j] += in - gs;
    }
    store(gx + i, total);
  }
  for (int j = 0; j < M; ++j) sums[j] = {sum(level[j]), sum(inside[j]), sum(missed[j])};
}

template <bool OFFSET, Gradient GRADIENT, class T>
void backward_block(const Problem &q, int64_t row, const T *x, const T *g, T *gx,
                    int64_t n, Sums *sums) {
  alignas(64) float total[BLOCK] = {};
  Candidate c[GROUP];
  Sums found[GROUP];
  int at[GROUP], k = 0;
  for (int j = 0; j < q.m; ++j) {
    if (q.is_float(j)) {
      float p = q.prob(j);
      vec dot = {};
      for (int64_t i = 0; i < n; i += LANES) {
        vec gs = load(g + i, n - i);
        store(total + i, load(total + i) + p * gs);
        dot += gs * load(x + i, n - i);
      }
      sums[j] = {sum(dot), 0, 0};
    } else {
      at[k] = j;
      c[k++] = q.at(j, row);
    }
    if (k == GROUP || (j + 1 == q.m && k)) {
      switch (k) {
        case 1: backward_group<1, OFFSET, GRADIENT>(c, x, g, total, n, found); break;
        case 2: backward_group<2, OFFSET, GRADIENT>(c, x, g, total, n, found); break;
        case 3: backward_group<3, OFFSET, GRADIENT>(c, x, g, total, n, found); break;
        case 4: backward_group<4, OFFSET, GRADIENT>(c, x, g, total, n, found); break;
      }
      for (int i = 0; i < k; ++i) sums[at[i]] = found[i];
      k = 0;
    }
  }
  if (gx)
    for (int64_t i = 0; i < n; i += LANES) store(gx + i, load(total + i), n - i);
}

template <bool OFFSET, Gradient GRADIENT, class T>
void backward(const Problem &q, const T *x, const T *g, T *gx, const float *factor,
              float *g_scale, float *g_offset, float *g_probs, int threads) {
  int64_t per_row = q.per_row(), blocks = q.rows * per_row;
  std::vector<Sums> sums(blocks * q.m);
#pragma omp parallel for schedule(static) num_threads(threads) if (blocks > 8)
  for (int64_t b = 0; b < blocks; ++b) {
    int64_t row = b / per_row, first = b % per_row * BLOCK, at = row * q.cols + first;
    int64_t n = q.cols - first < BLOCK ? q.cols - first : BLOCK;
    backward_block<OFFSET, GRADIENT>(q, row, x + at, g + at, gx ? gx + at : nullptr, n,
                             &sums[b * q.m]);
  }
  for (int j = 0; j < q.m; ++j) {
    double of_prob = 0;
    for (int64_t row = 0; row < q.rows; ++row) {
      double level = 0, inside = 0, missed = 0;
      for (int64_t b = row * per_row; b < (row + 1) * per_row; ++b) {
        level += sums[b * q.m + j].level;
        inside += sums[b * q.m + j].inside;
        missed += sums[b * q.m + j].missed;
      }
      float s = q.step(j, row), slope = q.is_float(j) ? 0 : level - inside;
      of_prob += level * s;
      if (g_scale) g_scale[j * q.rows + row] = slope * q.prob(j) * factor[j];
      if (g_offset) g_offset[j * q.rows + row] = float(missed * q.prob(j) * s);
    }
    if (g_probs) g_probs[j] = float(of_prob);
  }
}

template <bool OFFSET, class T>
void backward(int gradient, const Problem &q, const void *x, const void *g, void *gx,
              const float *factor, float *g_scale, float *g_offset, float *g_probs,
              int threads) {
  auto run = gradient == LSQ    ? backward<OFFSET, LSQ, T>
             : gradient == CLIP ? backward<OFFSET, CLIP, T>
                                : backward<OFFSET, IDENTITY, T>;
  run(q, (const T *)x, (const T *)g, (T *)gx, factor, g_scale, g_offset, g_probs,
      threads);
}

}  // namespace

extern "C" {

void mmmpq_forward(int is_bfloat16, const void *x, void *y, int64_t rows, int64_t cols,
                   int m, const float *scale, const float *offset, const float *lo,
                   const float *hi, const float *probs, int threads) {
  Problem q{rows, cols, m, scale, offset, lo, hi, probs};
  if (is_bfloat16)
    (offset ? forward<true, uint16_t> : forward<false, uint16_t>)(
        q, (const uint16_t *)x, (uint16_t *)y, threads);
  else
    (offset ? forward<true, float> : forward<false, float>)(
        q, (const float *)x, (float *)y, threads);
}

void mmmpq_backward(int is_bfloat16, const void *x, const void *g, void *gx,
                    int64_t rows, int64_t cols, int m, const float *scale,
                    const float *offset, const float *lo, const float *hi,
                    const float *probs, const float *factor, int gradient,
                    float *g_scale, float *g_offset, float *g_probs, int threads) {
  Problem q{rows, cols, m, scale, offset, lo, hi, probs};
  auto run = is_bfloat16 ? (offset ? backward<true, uint16_t> : backward<false, uint16_t>)
                         : (offset ? backward<true, float> : backward<false, float>);
  run(gradient, q, x, g, gx, factor, g_scale, g_offset, g_probs, threads);
}
}
