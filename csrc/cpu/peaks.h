#pragma once

#include <atomic>

#include "afnext/tensor.h"
#include "cpu/isa.h"

namespace afnext::cpu {

constexpr int kPeakOperands = 64;

struct PeakRead {
  const void* data;
  int64_t bytes;
  std::atomic<uint64_t>* seen;
};

struct PeakArithmetic {
  DType dtype;
  const float* operands;  // [kPeakOperands]
  int64_t steps;
  std::atomic<double>* operations;
};

// One measurement or both; null for none.
struct PeaksArgs {
  const PeakRead* read;
  const PeakArithmetic* arithmetic;
};

extern KernelTable<PeaksArgs> peaks_kernels;

}  // namespace afnext::cpu
