#pragma once

#include "afnext/attention.h"

namespace afnext::cuda {

// afnext::attention_backward on checked arguments; cu_seqlens and key_lengths on the CPU. The same
// bits each time: nothing is added in an order that chance decides.
void attention_backward(const TensorView& grad_out, const TensorView* grad_lse, const TensorView& q,
                        const TensorView& k, const TensorView& v, const TensorView& out,
                        const TensorView& lse, const AttentionOptions& options,
                        const TensorView& grad_q, const TensorView& grad_k,
                        const TensorView& grad_v, Stream stream);

}  // namespace afnext::cuda
