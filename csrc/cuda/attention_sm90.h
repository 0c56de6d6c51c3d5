#pragma once

#include "cuda/arch/call.h"
#include "cuda/attention_plan.h"

namespace afnext::cuda {

// Attention by the kernel for Hopper, of which `plan` was made. False, with nothing done, where it
// does not serve: on another device, for float32, for a head dim that is neither 64 nor 128, for
// rows of q or out that are not of whole units of 16 bytes, halves that turn by an odd number of
// pairs, keys that do not step, a scale that is not positive.
bool attention_sm90(const Call& call, const TensorView& q, const TensorView& k, const TensorView& v,
                    const AttentionOptions& options, const TensorView& out, AttentionPlan& plan);

}  // namespace afnext::cuda
