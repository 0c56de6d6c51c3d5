#include "afnext/layer_norm.h"

#include <string>

#include "afnext/error.h"
#include "cpu/layer_norm.h"
#include "cuda/backend.h"
#include "cuda/layer_norm.h"

namespace afnext {

constinit cpu::KernelTable<cpu::LayerNormArgs> cpu::layer_norm_kernels;

namespace {

void check_pooled(const Check& check, const TensorView& pooled, int64_t rows) {
  check.on_device(pooled, "pooled");
  if (pooled.dtype != DType::i64 || pooled.ndim != 2 || pooled.shape[1] < 1) {
    check.fail("pooled must be int64 [n, P] with P at least 1, got " + describe(pooled));
  }
  check.contiguous(pooled, "pooled");
  if (on_cuda(pooled)) return;
  for (int64_t i = 0; i < pooled.numel(); ++i) {
    const int64_t row = pooled.as<int64_t>()[i];
    if (row < 0 || row >= rows) {
      check.fail("pooled names row " + std::to_string(row) + " of " + std::to_string(rows));
    }
  }
}

}  // namespace

void layer_norm(const TensorView& x, const TensorView& weight, const TensorView& bias, double eps,
                const TensorView* pooled, const TensorView& out, Stream stream) {
  const Check check("layer_norm", x);
  check.floating(x, "x");
  check.require(x.has_uniform_rows(), "x must have rows at a uniform distance");
  check.exact(weight, "weight", x.dtype, {x.last()});
  check.exact(bias, "bias", x.dtype, {x.last()});
  if (pooled == nullptr) {
    check.same(out, "out", x);
    check.contiguous(out, "out");
  } else {
    check_pooled(check, *pooled, x.rows());
    check.exact(out, "out", x.dtype, {pooled->shape[0], x.last()});
  }
  if (out.numel() == 0) return;
  if constexpr (kCuda) {
    if (on_cuda(x)) return cuda::layer_norm(x, weight, bias, eps, pooled, out, stream);
  }
  cpu::layer_norm_kernels({x.dtype, out.rows(), x.last(), x.data, weight.data, bias.data,
                           x.row_stride(), pooled ? pooled->as<int64_t>() : nullptr,
                           pooled ? pooled->shape[1] : 1, static_cast<float>(eps), out.data});
}

}  // namespace afnext
