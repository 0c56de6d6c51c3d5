#pragma once

#include "afnext/attention.h"

namespace afnext::cuda {

// afnext::attention on checked arguments; offsets and lengths are on the CPU.
void attention(const TensorView& q, const TensorView& k, const TensorView& v,
               const AttentionOptions& options, const TensorView& out, const TensorView& lse,
               Stream stream);

}  // namespace afnext::cuda
