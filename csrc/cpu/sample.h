#pragma once

#include "afnext/tensor.h"
#include "cpu/isa.h"

namespace afnext::cpu {

struct SampleArgs {
  DType dtype;
  int64_t rows, vocabulary;
  const void* logits;
  int64_t stride;  // elements from row to row
  const float* temperature;
  const int32_t* top_k;
  const float *top_p, *min_p, *uniform;
  int64_t* tokens;
  float* logprobs;
};

extern KernelTable<SampleArgs> sample_kernels;

}  // namespace afnext::cpu
