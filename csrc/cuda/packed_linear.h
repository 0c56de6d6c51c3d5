#pragma once

#include "afnext/packed_linear.h"

namespace afnext::cuda {

// Rows of x that a call can have.
constexpr int64_t kMaxLinearRows = 64;

// afnext::packed_linear on checked arguments: bfloat16 or float16, at most kMaxLinearRows rows.
void packed_linear(const TensorView& x, const PackedView& weight, const TensorView* bias,
                   const TensorView* residual, Activation activation, const TensorView& out,
                   Stream stream);

}  // namespace afnext::cuda
