#pragma once

#include <atomic>

#include "afnext/tensor.h"
#include "cpu/isa.h"

namespace afnext::cpu {

constexpr int kPeakOperands = 64;

struct PeakReadArgs {
  const void* data;
  int64_t bytes;
  std::atomic<uint64_t>* seen;
};

struct PeakArithmeticArgs {
  DType dtype;
  const float* operands;  // [kPeakOperands]
  int64_t steps;
  std::atomic<double>* operations;
};

extern KernelTable<PeakReadArgs> peak_read_kernels;
extern KernelTable<PeakArithmeticArgs> peak_arithmetic_kernels;

}  // namespace afnext::cpu
