#pragma once

#include "afnext/tensor.h"
#include "cpu/isa.h"

namespace afnext::cpu {

struct MergeAttentionArgs {
  DType dtype;
  int64_t tokens, heads, dim;
  const void *out_a, *out_b;
  const float *lse_a, *lse_b;
  void* out;
  float* lse;
};

extern KernelTable<MergeAttentionArgs> merge_attention_kernels;

}  // namespace afnext::cpu
