#pragma once

#include "cuda/arch/call.h"
#include "cuda/attention_params.h"

namespace afnext::cuda {

// A rotation by times [tokens] of the first 2 x half channels; without one inv_freq is null.
struct Turn {
  const float *times = nullptr, *inv_freq = nullptr;
  int half = 0;
  bool interleaved = false;
};

// A copy of heads [tokens, heads, dim] of `dtype`, turned, in rows of `width` >= dim elements that
// zeros fill up: what attention's kernels read where a tensor turns, or does not lie in whole units
// of 16 bytes. `to` is contiguous [tokens, heads, width].
void turn_heads(const Call& call, DType dtype, const Heads& from, int64_t tokens, int heads,
                int dim, int width, const Turn& turn, void* to);

}  // namespace afnext::cuda
