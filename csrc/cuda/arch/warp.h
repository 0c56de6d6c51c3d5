// Sums and maxima over lanes.
#pragma once

#include "cuda/arch/platform.h"

namespace afnext::cuda::arch {

// Over groups of `width` neighbouring lanes; every lane gets the result, the same bits in each.
template <int width = kWarp>
AFNEXT_DEVICE float sum_lanes(float x) {
#pragma unroll
  for (int by = width / 2; by > 0; by /= 2) x += __shfl_xor_sync(kAllLanes, x, by);
  return x;
}
template <int width = kWarp>
AFNEXT_DEVICE float max_lanes(float x) {
#pragma unroll
  for (int by = width / 2; by > 0; by /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, by));
  return x;
}

}  // namespace afnext::cuda::arch
