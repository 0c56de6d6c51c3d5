#include "afnext/linear.h"

#include "afnext/error.h"
#include "cpu/linear.h"

namespace afnext {

constinit cpu::KernelTable<cpu::LinearArgs> cpu::linear_kernels;
constinit cpu::KernelTable<cpu::LinearArgs> cpu::linear_tiles_kernels;

namespace {

cpu::LinearArgs checked(const TensorView& x, const TensorView& weight, const TensorView* bias,
                        const TensorView& out) {
  const Check check("linear");
  check.floating(x, "x");
  check.require(x.has_uniform_rows(), "x must have rows at a uniform distance");
  check.floating_like(weight, "weight", x, 2);
  const int64_t n = weight.shape[0], k = weight.shape[1];
  if (x.last() != k) {
    check.fail("x must be [..., " + std::to_string(k) + "] for weight " + describe(weight) +
               ", got " + describe(x));
  }
  if (bias != nullptr) check.exact(*bias, "bias", x.dtype, {n});
  check.floating_like(out, "out", x, x.ndim);
  bool fits = out.last() == n && out.is_contiguous();
  for (int i = 0; fits && i + 1 < x.ndim; ++i) fits = out.shape[i] == x.shape[i];
  check.require(fits, "out must be x's shape with N for K, contiguous");
  return {x.dtype,
          x.rows(),
          n,
          k,
          x.data,
          weight.data,
          bias != nullptr ? bias->data : nullptr,
          x.row_stride(),
          weight.row_stride(),
          out.data};
}

}  // namespace

void linear(const TensorView& x, const TensorView& weight, const TensorView* bias,
            const TensorView& out) {
  const cpu::LinearArgs args = checked(x, weight, bias, out);
  if (out.numel() == 0) return;
  const bool tiles = cpu::active_isa() == cpu::Isa::amx && args.dtype == DType::bf16 &&
                     args.m > cpu::kLinearFewRows &&
                     cpu::linear_tiles_kernels.by_isa[static_cast<int>(cpu::Isa::amx)] != nullptr;
  tiles ? cpu::linear_tiles_kernels(args) : cpu::linear_kernels(args);
}

void linear_tiles(const TensorView& x, const TensorView& weight, const TensorView* bias,
                  const TensorView& out) {
  const cpu::LinearArgs args = checked(x, weight, bias, out);
  Check("linear").require(args.dtype == DType::bf16, "x must be bfloat16 for tiles");
  if (out.numel() > 0) cpu::linear_tiles_kernels(args);
}

}  // namespace afnext
