#pragma once

#include <atomic>

#include "afnext/quantize.h"
#include "cpu/isa.h"

namespace afnext::cpu {

struct QuantizeArgs {
  DType dtype;  // of the weight
  int64_t n, k;
  const void* weight;
  int64_t stride;  // elements from row to row
  QuantizedFormat format;
  void *values, *scales, *zeros;  // as in QuantizedTensors
  std::atomic<bool>* finite;      // is cleared where the weight is not
};

extern KernelTable<QuantizeArgs> quantize_kernels;

}  // namespace afnext::cpu
