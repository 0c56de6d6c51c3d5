#pragma once

#include "afnext/attention.h"
#include "cuda/arch/call.h"

namespace afnext::cuda {

// Attention by the kernel for Hopper, on checked arguments with cu_seqlens and key_lengths on the
// CPU; keys are turned already, queries are not. False, with nothing done, where it does not serve
// them: another device, float32, a head dim that is neither 64 nor 128, rows that do not align to
// 16 bytes, a scale that is not positive.
bool attention_sm90(const Call& call, const TensorView& q, const TensorView& turned_k,
                    const TensorView& v, const AttentionOptions& options, const TensorView& out,
                    const TensorView& lse);

}  // namespace afnext::cuda
