// Fake quantization with all candidate widths in one pass over the data.
//
// Of x (rows, cols), with u = x / s_j and v = u + z_j for step s_j and offset z_j of
// candidate j:
//   y = sum_j p_j s_j (round(clamp(v, lo_j, hi_j)) - z_j);  lo_j > hi_j: float, p_j x.
// With divisors n_j, the scales given are ranges r_j and s_j = max(|r_j|, 1e-8) / n_j.
// Gradients: see functional.py. The work is cut into blocks that stay in the first cache
// while the candidates pass over them, up to four at a time; sums are taken per block and
// added in one order, so that they do not depend on the number of threads.
//
// It needs no C++ library, and takes its threads from the pool that the caller names.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace {

// A vector is as wide as a register: compilers take a wider one apart value by value.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int64_t BLOCK = 2048;
constexpr int GROUP = 4;
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t wide __attribute__((vector_size(4 * LANES)));
typedef uint16_t half __attribute__((vector_size(2 * LANES)));

inline vec load(const float *p) {
  vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline vec load(const uint16_t *p) {  // bfloat16: the upper half of a float
  half h;
  memcpy(&h, p, sizeof h);
  return (vec)(__builtin_convertvector(h, wide) << 16);
}
inline void store(float *p, vec v) { memcpy(p, &v, sizeof v); }
inline void store(uint16_t *p, vec v) {
  wide w = (wide)v;
  wide rounded = w + 0x7fff + ((w >> 16) & 1);
  w = (wide)(v == v) ? rounded : w | 0x400000;
  half h = __builtin_convertvector(w >> 16, half);
  memcpy(p, &h, sizeof h);
}

// The last n values of a row, filled up with zeros.
template <class T>
inline vec load(const T *p, int64_t n) {
  T padded[LANES] = {};
  memcpy(padded, p, n * sizeof(T));
  return load(padded);
}
template <class T>
inline void store(T *p, vec v, int64_t n) {
  T padded[LANES];
  store(padded, v);
  memcpy(p, padded, n * sizeof(T));
}

// Operands in this order keep a NaN in v.
inline vec clamp(vec v, vec lo, vec hi) {
  v = lo > v ? lo : v;
  return hi < v ? hi : v;
}

// Half to even; exact for |v| < 2^22, which the levels never reach.
inline vec round(vec v) {
  const float shift = 12582912.f;
  return (v + shift) - shift;
}

constexpr float RANGE_MIN = 1e-8f;

inline float magnitude(float v) { return v < 0 ? -v : v; }

inline float sum(vec v) {
  float total = 0;
  for (int i = 0; i < LANES; ++i) total += v[i];
  return total;
}

struct Candidate {
  vec inverse, offset, lo, hi, p, step;  // step: p_j s_j
};

struct Problem {
  int64_t rows, cols;
  int m;
  const float *scale, *divisor, *offset, *lo, *hi, *probs;

  bool is_float(int j) const { return lo[j] > hi[j]; }
  float prob(int j) const { return probs ? probs[j] : 1.f; }
  float step(int j, int64_t row) const {
    float s = is_float(j) ? 1.f : scale[j * rows + row];
    if (is_float(j) || !divisor) return s;
    s = magnitude(s);
    return (s < RANGE_MIN ? RANGE_MIN : s) / divisor[j];
  }
  // d step / d scale
  float slope(int j, int64_t row) const {
    float s = scale[j * rows + row];
    if (!divisor) return 1;
    return (magnitude(s) < RANGE_MIN ? 0.f : s < 0 ? -1.f : 1.f) / divisor[j];
  }

  Candidate at(int j, int64_t row) const {
    float s = step(j, row), z = offset ? offset[j * rows + row] : 0.f, p = prob(j);
    vec o = {};
    return {o + 1.f / s, o + z, o + lo[j], o + hi[j], o + p, o + p * s};
  }
  int64_t per_row() const { return (cols + BLOCK - 1) / BLOCK; }
  int64_t blocks() const { return rows * per_row(); }
};

// Numbers of the candidates that a pass takes, up to GROUP of them.
struct Pass {
  int size, at[GROUP];
};

// Calls f(pass, first, last) until every candidate that is not float had its turn.
template <class F>
void in_passes(const Problem &q, bool first, F f) {
  int left = 0;
  for (int j = 0; j < q.m; ++j) left += !q.is_float(j);
  Pass pass{};
  for (int j = 0; j < q.m; ++j) {
    if (q.is_float(j)) continue;
    pass.at[pass.size++] = j;
    --left;
    if (pass.size < GROUP && left) continue;
    f(pass, first, !left);
    pass.size = 0;
    first = false;
  }
}

// The function of its caller that runs work(data) on so many threads at once, with the
// signature of GOMP_parallel; null: there is none.
typedef void (*Threads)(void (*work)(void *), void *data, unsigned count, unsigned flags);

template <class F>
struct Blocks {
  F *run;
  int64_t count, share, next;

  static void work(void *data) {
    auto *self = (Blocks *)data;
    while (true) {
      int64_t b = __atomic_fetch_add(&self->next, self->share, __ATOMIC_RELAXED);
      if (b >= self->count) return;
      for (int64_t end = b + self->share; b < end && b < self->count; ++b) (*self->run)(b);
    }
  }
};

// Calls run(b) for every block.
template <class F>
void each_block(const Problem &q, Threads parallel, int threads, F run) {
  int64_t count = q.blocks(), share = count / (8 * threads);
  Blocks<F> blocks{&run, count, share ? share : 1, 0};
  if (parallel && threads > 1 && q.rows * q.cols > 8 * BLOCK)
    parallel(Blocks<F>::work, &blocks, threads, 0);
  else
    Blocks<F>::work(&blocks);
}

// --- forward ---------------------------------------------------------------------------

template <int M, bool OFFSET>
inline vec mixed(const Candidate *c, vec x, vec y) {
  for (int j = 0; j < M; ++j) {
    vec v = x * c[j].inverse;
    if (OFFSET) v += c[j].offset;
    v = round(clamp(v, c[j].lo, c[j].hi));
    if (OFFSET) v -= c[j].offset;
    y += v * c[j].step;
  }
  return y;
}

// out = total, if there is any, + what M candidates make of x.
template <int M, bool OFFSET, class T, class O>
void forward_pass(const Candidate *given, const T *x, const float *total, O *out,
                  int64_t n) {
  Candidate c[M];  // a copy, which no store can change
  for (int j = 0; j < M; ++j) c[j] = given[j];
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    store(out + i, mixed<M, OFFSET>(c, load(x + i), total ? load(total + i) : vec{}));
  if (i < n) {
    vec y = total ? load(total + i, n - i) : vec{};
    store(out + i, mixed<M, OFFSET>(c, load(x + i, n - i), y), n - i);
  }
}

template <bool OFFSET, class T, class O>
void forward_pass(const Problem &q, int64_t row, const Pass &pass, const T *x,
                  const float *total, O *out, int64_t n) {
  Candidate c[GROUP];
  for (int j = 0; j < pass.size; ++j) c[j] = q.at(pass.at[j], row);
  switch (pass.size) {
    case 1: return forward_pass<1, OFFSET>(c, x, total, out, n);
    case 2: return forward_pass<2, OFFSET>(c, x, total, out, n);
    case 3: return forward_pass<3, OFFSET>(c, x, total, out, n);
    case 4: return forward_pass<4, OFFSET>(c, x, total, out, n);
  }
}

// to = scale · from, value by value.
template <class F, class T>
void scaled(float scale, const F *from, T *to, int64_t n) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) store(to + i, scale * load(from + i));
  if (i < n) store(to + i, scale * load(from + i, n - i), n - i);
}

template <bool OFFSET, class T>
void forward_block(const Problem &q, int64_t row, const T *x, T *y, int64_t n) {
  alignas(64) float total[BLOCK];
  int floats = 0;
  float p = 0;  // of all float candidates
  for (int j = 0; j < q.m; ++j)
    if (q.is_float(j)) p += q.prob(j), ++floats;
  if (floats == q.m) return scaled(p, x, y, n);
  if (floats) scaled(p, x, total, n);
  in_passes(q, !floats, [&](const Pass &pass, bool first, bool last) {
    const float *before = first ? nullptr : total;
    if (last)
      forward_pass<OFFSET>(q, row, pass, x, before, y, n);
    else
      forward_pass<OFFSET>(q, row, pass, x, before, total, n);
  });
}

template <bool OFFSET, class T>
void forward(const Problem &q, const T *x, T *y, Threads parallel, int threads) {
  int64_t per_row = q.per_row();
  each_block(q, parallel, threads, [&](int64_t b) {
    int64_t row = b / per_row, first = b % per_row * BLOCK, at = row * q.cols + first;
    int64_t n = q.cols - first < BLOCK ? q.cols - first : BLOCK;
    forward_block<OFFSET>(q, row, x + at, y + at, n);
  });
}

// --- backward --------------------------------------------------------------------------

enum Gradient { LSQ, CLIP, IDENTITY };  // as in functional.py

// Sums of g times: the level less the offset; what the range's gradient takes from it;
// -1 where v is outside.
struct Sums {
  float level, inside, missed;
};

template <int M, bool OFFSET, Gradient GRADIENT>
struct Backward {
  Candidate c[M];
  vec level[M] = {}, inside[M] = {}, missed[M] = {};

  inline vec operator()(vec x, vec g, vec total) {
    for (int j = 0; j < M; ++j) {
      vec u = x * c[j].inverse, v = OFFSET ? u + c[j].offset : u;
      vec clamped = clamp(v, c[j].lo, c[j].hi), q = round(clamped);
      if (OFFSET) q -= c[j].offset;
      vec in = clamped == v ? g : vec{};
      total += (GRADIENT == IDENTITY ? g : in) * c[j].p;
      level[j] += g * q;
      inside[j] += in * (GRADIENT == CLIP ? q : u);
      if (OFFSET) missed[j] += in - g;
    }
    return total;
  }
};

// gx, if wanted, = total, if there is any, + what M candidates let pass of g.
template <int M, bool OFFSET, Gradient GRADIENT, class T, class O>
void backward_pass(const Candidate *given, const T *x, const T *g, const float *total,
                   O *gx, int64_t n, Sums *sums) {
  Backward<M, OFFSET, GRADIENT> back;
  for (int j = 0; j < M; ++j) back.c[j] = given[j];
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) {
    vec y = back(load(x + i), load(g + i), total ? load(total + i) : vec{});
    if (gx) store(gx + i, y);
  }
  if (i < n) {
    vec before = total ? load(total + i, n - i) : vec{};
    vec y = back(load(x + i, n - i), load(g + i, n - i), before);
    if (gx) store(gx + i, y, n - i);
  }
  for (int j = 0; j < M; ++j)
    sums[j] = {sum(back.level[j]), sum(back.inside[j]), sum(back.missed[j])};
}

template <bool OFFSET, Gradient GRADIENT, class T, class O>
void backward_pass(const Problem &q, int64_t row, const Pass &pass, const T *x,
                   const T *g, const float *total, O *gx, int64_t n, Sums *sums) {
  Candidate c[GROUP];
  Sums found[GROUP] = {};
  for (int j = 0; j < pass.size; ++j) c[j] = q.at(pass.at[j], row);
  switch (pass.size) {
    case 1: backward_pass<1, OFFSET, GRADIENT>(c, x, g, total, gx, n, found); break;
    case 2: backward_pass<2, OFFSET, GRADIENT>(c, x, g, total, gx, n, found); break;
    case 3: backward_pass<3, OFFSET, GRADIENT>(c, x, g, total, gx, n, found); break;
    case 4: backward_pass<4, OFFSET, GRADIENT>(c, x, g, total, gx, n, found); break;
  }
  for (int j = 0; j < pass.size; ++j) sums[pass.at[j]] = found[j];
}

// Sum of a · b.
template <class T>
float dot(const T *a, const T *b, int64_t n) {
  vec total = {};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) total += load(a + i) * load(b + i);
  if (i < n) total += load(a + i, n - i) * load(b + i, n - i);
  return sum(total);
}

template <bool OFFSET, Gradient GRADIENT, class T>
void backward_block(const Problem &q, int64_t row, const T *x, const T *g, T *gx,
                    int64_t n, Sums *sums) {
  alignas(64) float total[BLOCK];
  int floats = 0;
  float p = 0;
  for (int j = 0; j < q.m; ++j)
    if (q.is_float(j)) {
      p += q.prob(j);
      sums[j] = {dot(g, x, n), 0, 0};
      ++floats;
    }
  if (floats == q.m) {
    if (gx) scaled(p, g, gx, n);
    return;
  }
  if (floats) scaled(p, g, total, n);
  in_passes(q, !floats, [&](const Pass &pass, bool first, bool last) {
    const float *before = first ? nullptr : total;
    if (last)
      backward_pass<OFFSET, GRADIENT>(q, row, pass, x, g, before, gx, n, sums);
    else
      backward_pass<OFFSET, GRADIENT>(q, row, pass, x, g, before, total, n, sums);
  });
}

template <bool OFFSET, Gradient GRADIENT, class T>
void backward(const Problem &q, const T *x, const T *g, T *gx, Sums *sums,
              Threads parallel, int threads) {
  int64_t per_row = q.per_row();
  each_block(q, parallel, threads, [&](int64_t b) {
    int64_t row = b / per_row, first = b % per_row * BLOCK, at = row * q.cols + first;
    int64_t n = q.cols - first < BLOCK ? q.cols - first : BLOCK;
    backward_block<OFFSET, GRADIENT>(q, row, x + at, g + at, gx ? gx + at : gx, n,
                                     sums + b * q.m);
  });
}

template <bool OFFSET, class T>
void backward(int gradient, const Problem &q, const void *x, const void *g, void *gx,
              Sums *sums, Threads parallel, int threads) {
  auto run = gradient == LSQ    ? backward<OFFSET, LSQ, T>
             : gradient == CLIP ? backward<OFFSET, CLIP, T>
                                : backward<OFFSET, IDENTITY, T>;
  run(q, (const T *)x, (const T *)g, (T *)gx, sums, parallel, threads);
}

// From the sums of all blocks to the gradients of the small tensors.
void finish(const Problem &q, const Sums *sums, const float *factor, float *g_scale,
            float *g_offset, float *g_probs) {
  int64_t per_row = q.per_row();
  for (int j = 0; j < q.m; ++j) {
    double of_prob = 0;
    for (int64_t row = 0; row < q.rows; ++row) {
      double level = 0, inside = 0, missed = 0;
      for (int64_t b = row * per_row; b < (row + 1) * per_row; ++b) {
        level += sums[b * q.m + j].level;
        inside += sums[b * q.m + j].inside;
        missed += sums[b * q.m + j].missed;
      }
      float s = q.step(j, row), g = q.is_float(j) ? 0 : level - inside;
      of_prob += level * s;
      if (g_scale)
        g_scale[j * q.rows + row] = g * q.prob(j) * factor[j] * q.slope(j, row);
      if (g_offset) g_offset[j * q.rows + row] = float(missed * q.prob(j) * s);
    }
    if (g_probs) g_probs[j] = float(of_prob);
  }
}

}  // namespace

extern "C" {

void mmmpq_forward(int is_bfloat16, const void *x, void *y, int64_t rows, int64_t cols,
                   int m, const float *scale, const float *divisor, const float *offset,
                   const float *lo, const float *hi, const float *probs, Threads parallel, int threads) {
  Problem q{rows, cols, m, scale, divisor, offset, lo, hi, probs};
  if (is_bfloat16)
    (offset ? forward<true, uint16_t> : forward<false, uint16_t>)(
        q, (const uint16_t *)x, (uint16_t *)y, parallel, threads);
  else
    (offset ? forward<true, float> : forward<false, float>)(
        q, (const float *)x, (float *)y, parallel, threads);
}

// Returns 0, or 1 where memory has run out.
int mmmpq_backward(int is_bfloat16, const void *x, const void *g, void *gx, int64_t rows,
                   int64_t cols, int m, const float *scale, const float *divisor,
                   const float *offset, const float *lo, const float *hi,
                   const float *probs, const float *factor, int gradient, float *g_scale, float *g_offset,
                   float *g_probs, Threads parallel, int threads) {
  Problem q{rows, cols, m, scale, divisor, offset, lo, hi, probs};
  auto *sums = (Sums *)malloc((q.blocks() * m + 1) * sizeof(Sums));
  if (!sums) return 1;
  auto run = is_bfloat16 ? (offset ? backward<true, uint16_t> : backward<false, uint16_t>)
                         : (offset ? backward<true, float> : backward<false, float>);
  run(gradient, q, x, g, gx, sums, parallel, threads);
  finish(q, sums, factor, g_scale, g_offset, g_probs);
  free(sums);
  return 0;
}
}
