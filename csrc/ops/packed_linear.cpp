#include "afnext/packed_linear.h"

#include "afnext/error.h"
#include "cpu/activation_bits.h"
#include "cpu/packed_linear.h"
#include "cpu/quantized_panel.h"
#include "cuda/backend.h"
#include "cuda/packed_linear.h"

namespace afnext {

constinit cpu::KernelTable<cpu::ActivationBitsArgs> cpu::activation_bits_kernels;
constinit cpu::KernelTable<cpu::PackedLinearArgs> cpu::packed_linear_kernels;
constinit cpu::KernelTable<cpu::PackedLinearArgs> cpu::packed_linear_quantized_kernels;
constinit cpu::KernelTable<cpu::PackedLinearArgs> cpu::packed_linear_tiles_kernels;
constinit cpu::KernelTable<cpu::PackedLinearArgs> cpu::packed_linear_quantized_tiles_kernels;
constinit cpu::KernelTable<cpu::PackedLinearArgs> cpu::packed_linear_dequantized_tiles_kernels;

namespace {

using Args = cpu::PackedLinearArgs;

constexpr int64_t kFewRows = 16;  // they wait for the weights, whatever x is

bool is_quantized(const Args& a) {
  return a.weight.format == WeightFormat::int8 || a.weight.format == WeightFormat::int4;
}

// Tiles of integers take bytes, and groups that fill a tile; others become tiles of bfloat16, for x
// of that type.
bool has_integer_tiles(const Args& a) {
  return a.weight.activation_bits == 8 && a.weight.group != 32;
}

bool fits_tiles(const Args& a) {
  const bool bf16 = a.dtype == DType::bf16;
  return is_quantized(a) ? has_integer_tiles(a) || bf16
                         : bf16 && a.weight.format == WeightFormat::bf16;
}

const cpu::KernelTable<Args>& tile_kernels(const Args& args) {
  if (!is_quantized(args)) return cpu::packed_linear_tiles_kernels;
  return has_integer_tiles(args) ? cpu::packed_linear_quantized_tiles_kernels
                                 : cpu::packed_linear_dequantized_tiles_kernels;
}

// The table that serves these arguments.
const cpu::KernelTable<Args>& kernels(const Args& args) {
  constexpr int amx = static_cast<int>(cpu::Isa::amx);
  const bool tiles = cpu::active_isa() == cpu::Isa::amx && fits_tiles(args) &&
                     (args.m >= kFewRows || !is_quantized(args)) &&  // half a tile is slower
                     tile_kernels(args).by_isa[amx] != nullptr;
  if (tiles) return tile_kernels(args);
  return is_quantized(args) ? cpu::packed_linear_quantized_kernels : cpu::packed_linear_kernels;
}

// Settles how many bits x has where the weight leaves that open: 8 halve the work of many rows.
void settle_activation_bits(Args& a) {
  if (a.weight.activation_bits != 0) return;
  a.weight.activation_bits = 16;
  if (a.m < kFewRows) return;
  const int64_t shared = cpu::kBlock * cpu::QuantizedPanel(a.weight).scale_blocks(8);
  cpu::activation_bits_kernels(
      {a.dtype, a.m, a.weight.k, a.x, a.x_stride, shared, &a.weight.activation_bits});
}

Args checked(const TensorView& x, const PackedView& weight, const TensorView* bias,
             const TensorView* residual, Activation activation, const TensorView& out) {
  const Check check("linear", x);
  check.floating(x, "x");
  check.require(weight.layout == packed_layout(x.device),
                "weight must be packed on the device of x");
  check.require(x.has_uniform_rows(), "x must have rows at a uniform distance");
  if (x.last() != weight.k) {
    check.fail("x must be [..., " + std::to_string(weight.k) + "] for the packed weight [" +
               std::to_string(weight.n) + ", " + std::to_string(weight.k) + "], got " +
               describe(x));
  }
  if (weight.gate_up != (activation == Activation::silu_mul)) {
    check.fail(weight.gate_up ? "activation must be silu_mul for a gate_up weight"
                              : "activation silu_mul needs a weight packed with gate_up");
  }
  if (bias != nullptr) check.exact(*bias, "bias", x.dtype, {weight.n});
  check.floating_like(out, "out", x, x.ndim);
  bool fits = out.last() == weight.columns() && out.is_contiguous();
  for (int i = 0; fits && i + 1 < x.ndim; ++i) fits = out.shape[i] == x.shape[i];
  check.require(fits, "out must be x's shape with N for K, contiguous");
  if (residual != nullptr) {
    check.same(*residual, "residual", out);
    check.contiguous(*residual, "residual");
  }
  return {x.dtype,
          x.rows(),
          weight,
          x.data,
          x.row_stride(),
          bias != nullptr ? bias->data : nullptr,
          residual != nullptr ? residual->data : nullptr,
          activation,
          out.data};
}

// What kernels for CUDA take of what `checked` lets pass.
void check_cuda(const Args& args) {
  const Check check("linear");
  const WeightFormat format = args.weight.format;
  check.require(args.dtype != DType::f32, "x must be bfloat16 or float16 on cuda, got float32");
  check.require(format != WeightFormat::bf16 || args.dtype == DType::bf16,
                "x must be bfloat16 like the packed weight");
  check.require(format != WeightFormat::f16 || args.dtype == DType::f16,
                "x must be float16 like the packed weight");
  if (args.m > cuda::kMaxLinearRows) {
    check.fail("x must have at most " + std::to_string(cuda::kMaxLinearRows) +
               " rows on cuda, got " + std::to_string(args.m) + " (unpack the weight)");
  }
}

}  // namespace

void packed_linear(const TensorView& x, const PackedView& weight, const TensorView* bias,
                   const TensorView* residual, Activation activation, const TensorView& out,
                   Stream stream) {
  Args args = checked(x, weight, bias, residual, activation, out);
  if constexpr (kCuda) {
    if (on_cuda(x)) {
      check_cuda(args);
      if (out.numel() == 0) return;
      return cuda::packed_linear(x, weight, bias, residual, activation, out, stream);
    }
  }
  if (out.numel() == 0) return;
  settle_activation_bits(args);
  kernels(args)(args);
}

void packed_linear_tiles(const TensorView& x, const PackedView& weight, const TensorView* bias,
                         const TensorView* residual, Activation activation, const TensorView& out) {
  Args args = checked(x, weight, bias, residual, activation, out);
  settle_activation_bits(args);
  Check("linear").require(fits_tiles(args), "x and weight must be bfloat16 for tiles");
  if (out.numel() > 0) tile_kernels(args)(args);
}

}  // namespace afnext
