#include "afnext/rms_norm.h"

#include "afnext/error.h"
#include "cpu/rms_norm.h"
#include "cuda/backend.h"
#include "cuda/rms_norm.h"

namespace afnext {

constinit cpu::KernelTable<cpu::RmsNormArgs> cpu::rms_norm_kernels;

void rms_norm(const TensorView& x, const TensorView* residual, const TensorView& weight, double eps,
              const TensorView& out, const TensorView* total, Stream stream) {
  const Check check("rms_norm", x);
  check.floating(x, "x");
  check.require(x.has_uniform_rows(), "x must have rows at a uniform distance");
  check.exact(weight, "weight", x.dtype, {x.last()});
  check.same(out, "out", x);
  check.contiguous(out, "out");
  check.require((residual == nullptr) == (total == nullptr), "residual and total go together");
  if (residual != nullptr) {
    check.same(*residual, "residual", x);
    check.require(residual->has_uniform_rows(), "residual must have rows at a uniform distance");
    check.same(*total, "total", x);
    check.contiguous(*total, "total");
  }
  if (x.numel() == 0) return;
  if constexpr (kCuda) {
    if (on_cuda(x)) return cuda::rms_norm(x, residual, weight, eps, out, total, stream);
  }
  cpu::rms_norm_kernels({x.dtype, x.rows(), x.last(), x.data, residual ? residual->data : nullptr,
                         weight.data, x.row_stride(), residual ? residual->row_stride() : 0,
                         static_cast<float>(eps), out.data, total ? total->data : nullptr});
}

}  // namespace afnext
