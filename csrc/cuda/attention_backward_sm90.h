#pragma once

#include <vector>

#include "cuda/arch/call.h"
#include "cuda/attention_backward_params.h"

namespace afnext::cuda {

// Launches the kernels for Hopper; false, and nothing, where they do not serve. `p` lacks its
// sequences and items.
bool attention_backward_sm90(const Call& call, DType dtype,
                             const std::vector<PackedSequence>& sequences, int64_t query_tokens,
                             const BackwardParams& p);

}  // namespace afnext::cuda
