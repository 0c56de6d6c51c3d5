// A block's sum over plain shared memory and shuffles: what only instrumented loads and stores
// show.
#pragma once

#include "emulation/kernel.h"

enum class ReductionFault {
  none,
  no_first_barrier,
  no_second_barrier,
  barrier_in_a_branch,
  shuffle_in_a_branch,
  reads_unwritten,
  past_the_end,
  early_exit,
  no_warp_sync,
};

struct ReductionShared {
  float values[128];
  float sums[4];
};

template <ReductionFault fault>
__global__ void reduction(const float* x, float* y, int n) {
  auto& shared = emulation::shared_memory<ReductionShared>();
  const int t = static_cast<int>(threadIdx.x);
  const float own = t < n ? x[static_cast<int>(blockIdx.x) * n + t] : 0;
  if (fault == ReductionFault::early_exit && t == 127) return;
  shared.values[fault == ReductionFault::past_the_end && t == 127 ? 132 : t] = own;
  if (fault != ReductionFault::no_first_barrier) __syncthreads();
  float sum = shared.values[t ^ 33];
  for (int by = 16; by > 0; by /= 2) {
    if (fault == ReductionFault::shuffle_in_a_branch && t % 32 >= 30) break;
    sum += __shfl_xor_sync(0xffffffff, sum, by);
  }
  if (t % 32 == 0) shared.sums[t / 32] = sum;
  if (fault == ReductionFault::no_warp_sync) {
    y[gridDim.x + blockIdx.x] = shared.sums[t / 32];  // lane 0 wrote it, nobody waited
  }
  if (fault == ReductionFault::barrier_in_a_branch) {
    if (t < 40) __syncthreads();
  } else if (fault != ReductionFault::no_second_barrier) {
    __syncthreads();
  }
  if (t == 0) {
    const int count = fault == ReductionFault::reads_unwritten ? 5 : 4;
    float total = 0;
    for (int i = 0; i < count; ++i) total += (&shared.sums[0])[i];
    y[blockIdx.x] = total;
  }
}
