#include "cpu/layer_norm.h"

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd/rows.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kRowsPerThread = 4;

// t becomes the mean of the named rows of x, in float32; what fills its last vector is zero.
template <typename T>
void mean_of_rows(const LayerNormArgs& a, const int64_t* names, int64_t count, float* t) {
  const T* x = static_cast<const T*>(a.x);
  load_row(x + names[0] * a.x_stride, a.width, t);
  if (count == 1) return;
  const float share = 1.0f / static_cast<float>(count);
  for (int64_t p = 1; p < count; ++p) {
    const T* row = x + names[p] * a.x_stride;
    int64_t i = 0;
    for (; i + kLanes <= a.width; i += kLanes) store(t + i, load(t + i) + load(row + i));
    for (; i < a.width; ++i) t[i] += to_float(row[i]);
  }
  for (int64_t i = 0; i < a.width; i += kLanes) store(t + i, load(t + i) * share);
}

// Deviations from a first mean give the variance without cancellation, and their own mean corrects
// the first one, which is rounded where the mean is far from zero (Chan, Golub and LeVeque, 1983).
template <typename T>
void norm(const LayerNormArgs& a, const float* t, T* out) {
  const int64_t whole = a.width / kLanes * kLanes;
  const float count = static_cast<float>(a.width);
  F32 sums{};
  for (int64_t i = 0; i < a.width; i += kLanes) sums += load(t + i);
  const float first = sum(sums) / count;
  F32 deviations{}, squares{};
  for (int64_t i = 0; i < whole; i += kLanes) {
    const F32 v = load(t + i) - first;
    deviations += v;
    squares = fma(v, v, squares);
  }
  float deviation = sum(deviations), square = sum(squares);
  for (int64_t i = whole; i < a.width; ++i) {
    deviation += t[i] - first;
    square += (t[i] - first) * (t[i] - first);
  }
  const float drift = deviation / count;
  const float scale = 1.0f / __builtin_sqrtf(square / count - drift * drift + a.eps);
  const T *weight = static_cast<const T*>(a.weight), *bias = static_cast<const T*>(a.bias);
  for (int64_t i = 0; i < whole; i += kLanes) {
    const F32 v = (load(t + i) - first - drift) * scale;
    store(out + i, fma(v, load(weight + i), load(bias + i)));
  }
  for (int64_t i = whole; i < a.width; ++i) {
    from_float(out + i, (t[i] - first - drift) * scale * to_float(weight[i]) + to_float(bias[i]));
  }
}

template <typename T>
void rows(const LayerNormArgs& a) {
  parallel_for(a.rows, kRowsPerThread, [&](int64_t begin, int64_t end) {
    float* t = scratch<float>(0, static_cast<size_t>(a.width + kLanes));
    for (int64_t r = begin; r < end; ++r) {
      a.pooled != nullptr ? mean_of_rows<T>(a, a.pooled + r * a.pool, a.pool, t)
                          : mean_of_rows<T>(a, &r, 1, t);
      norm(a, t, static_cast<T*>(a.out) + r * a.width);
    }
  });
}

}  // namespace

void layer_norm(const LayerNormArgs& args) {
  args.dtype == DType::f32 ? rows<float>(args) : rows<bf16>(args);
}

AFNEXT_REGISTER(layer_norm, LayerNormArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
