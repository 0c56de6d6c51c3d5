#pragma once

#include "afnext/pack.h"

namespace afnext {

// What is applied to the float32 sums, after the bias.
enum class Activation : uint8_t { none, gelu, silu_mul };

// out = activation(x @ weight.T + bias) + residual, in float32, rounded once.
//
//   x: float32 or bfloat16 [..., K] (on CUDA bfloat16 or float16, at most 64 rows, and a dense
//   weight of the same dtype), rows at a uniform distance; weight: packed [N, K]; bias: [N]
//   of x's dtype or null; residual: of out's shape and dtype, contiguous, or null; it may be out
//   itself. out: contiguous [..., N] of x's dtype, [..., N / 2] for a gate_up weight.
//
// gelu is the one with erf; silu_mul goes with gate_up weights and with them alone.
void packed_linear(const TensorView& x, const PackedView& weight, const TensorView* bias,
                   const TensorView* residual, Activation activation, const TensorView& out,
                   Stream stream = {});
// The same by the kernel for AMX tiles (bfloat16 x and weight), with the tiles emulated in plain
// C++ where the machine has none: for tests.
void packed_linear_tiles(const TensorView& x, const PackedView& weight, const TensorView* bias,
                         const TensorView* residual, Activation activation, const TensorView& out);

}  // namespace afnext
