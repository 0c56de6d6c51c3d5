#pragma once

#include "afnext/tensor.h"

namespace afnext::cuda {

// afnext::layer_norm on checked arguments. A row of `pooled` that names no row of x gives NaN.
void layer_norm(const TensorView& x, const TensorView& weight, const TensorView& bias, double eps,
                const TensorView* pooled, const TensorView& out, Stream stream);

}  // namespace afnext::cuda
