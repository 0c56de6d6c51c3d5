#include "cpu/rms_norm.h"

#include "cpu/parallel.h"
#include "cpu/simd/vec.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kRowsPerThread = 4;

// One pass reads x (and the residual) and sums squares, a second scales: the row is in L1 by then.
template <typename T>
void row(const T* x, const T* residual, const T* weight, int64_t width, float eps, T* out,
         T* total) {
  const T* source = x;
  if (residual != nullptr) {
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) store(total + i, load(x + i) + load(residual + i));
    for (; i < width; ++i) from_float(total + i, to_float(x[i]) + to_float(residual[i]));
    source = total;
  }
  F32 squares{};
  float tail = 0.0f;
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const F32 v = load(source + i);
    squares = fma(v, v, squares);
  }
  for (; i < width; ++i) tail += to_float(source[i]) * to_float(source[i]);
  const float mean = (sum(squares) + tail) / static_cast<float>(width);
  const float scale = 1.0f / __builtin_sqrtf(mean + eps);
  T rounded[kLanes];
  for (i = 0; i + kLanes <= width; i += kLanes) {
    store(rounded, load(source + i) * scale);
    store(out + i, load(rounded) * load(weight + i));
  }
  for (; i < width; ++i) {
    from_float(rounded, to_float(source[i]) * scale);
    from_float(out + i, to_float(rounded[0]) * to_float(weight[i]));
  }
}

template <typename T>
void rows(const RmsNormArgs& a) {
  parallel_for(a.rows, kRowsPerThread, [&](int64_t begin, int64_t end) {
    const T* residual = static_cast<const T*>(a.residual);
    for (int64_t r = begin; r < end; ++r) {
      row(static_cast<const T*>(a.x) + r * a.x_stride,
          residual ? residual + r * a.residual_stride : nullptr, static_cast<const T*>(a.weight),
          a.width, a.eps, static_cast<T*>(a.out) + r * a.width,
          residual ? static_cast<T*>(a.total) + r * a.width : nullptr);
    }
  });
}

}  // namespace

void rms_norm(const RmsNormArgs& args) {
  args.dtype == DType::f32 ? rows<float>(args) : rows<bf16>(args);
}

AFNEXT_REGISTER(rms_norm, RmsNormArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
