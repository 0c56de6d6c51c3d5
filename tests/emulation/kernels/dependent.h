// Two kernels of a stream, of which the second starts while the first still runs (griddepcontrol):
// it may read what no kernel writes, waits, and adds to it what the first has written.
#pragma once

#include "emulation/kernel.h"

enum class DependentFault {
  none,
  no_wait,
  no_wait_in_a_block,
  no_barrier,
  reads_too_soon,
  copies_too_soon,
  writes_too_soon,
};

struct DependentShared {
  alignas(16) float copied[128];
};

inline __global__ void doubled(const float* x, float* twice) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  twice[i] = 2 * x[i];
}

// One thread waits for all of its block: a barrier tells the others.
template <DependentFault fault>
__global__ void dependent(const float* twice, const float* constant, float* y) {
  using namespace emulation;
  auto& shared = shared_memory<DependentShared>();
  const unsigned t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
  if (fault == DependentFault::no_wait_in_a_block && blockIdx.x == 1) return;
  float sum = constant[i];
  if (fault == DependentFault::reads_too_soon) sum += twice[i];
  if (fault == DependentFault::writes_too_soon) y[i] = 0;
  if (fault == DependentFault::copies_too_soon && t % 4 == 0) {
    cp_async<16>(&shared.copied[t], &twice[i]);
    cp_async_commit_group();
  }
  if (fault != DependentFault::no_wait && t == 40) griddepcontrol_wait();
  if (fault != DependentFault::no_barrier) __syncthreads();
  if (fault == DependentFault::copies_too_soon) {
    cp_async_wait_group<0>();
    __syncthreads();
    sum += shared.copied[t];
  } else if (fault != DependentFault::reads_too_soon) {
    sum += twice[i];
  }
  y[i] = sum;
}
