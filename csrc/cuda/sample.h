#pragma once

#include "afnext/tensor.h"

namespace afnext::cuda {

// afnext::sample on checked arguments.
void sample(const TensorView& logits, const TensorView& temperature, const TensorView& top_k,
            const TensorView& top_p, const TensorView& min_p, const TensorView& uniform,
            const TensorView& tokens, const TensorView& logprobs, Stream stream);

}  // namespace afnext::cuda
