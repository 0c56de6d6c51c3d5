#pragma once

#include "afnext/tensor.h"

namespace afnext::cuda {

// afnext::merge_attention on checked arguments.
void merge_attention(const TensorView& out_a, const TensorView& lse_a, const TensorView& out_b,
                     const TensorView& lse_b, const TensorView& out, const TensorView& lse,
                     Stream stream);

}  // namespace afnext::cuda
