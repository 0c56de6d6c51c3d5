#pragma once

#include "afnext/tensor.h"

namespace afnext {

// Attention over the union of two disjoint sets of keys, from the results over each:
// out = (exp(lse_a) out_a + exp(lse_b) out_b) / (exp(lse_a) + exp(lse_b)), lse of the sum.
//
//   out_a, out_b, out: float32 or bfloat16 (on CUDA also float16) [T, H, D]; lse_a, lse_b, lse:
//   float32 [H, T], -inf where no key was seen. All contiguous.
void merge_attention(const TensorView& out_a, const TensorView& lse_a, const TensorView& out_b,
                     const TensorView& lse_b, const TensorView& out, const TensorView& lse,
                     Stream stream = {});

}  // namespace afnext
