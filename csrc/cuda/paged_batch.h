// Launches over a batch that lies on the device: what a call and a plan share.
#pragma once

#include "cuda/arch/call.h"
#include "cuda/paged_append.h"
#include "cuda/paged_attention.h"
#include "cuda/paged_work.h"

namespace afnext::cuda {

struct PagedBatch {
  const int32_t* words;  // PagedHeader and what follows it
  int32_t* error;        // may be null
  float* partials;
  PagedCounts most;  // how much work there may be: grids follow from it
};

// Floats of a row of partial results: whole vectors of four.
inline int64_t partial_dim(int64_t dim) { return (dim + 3) / 4 * 4; }
// Bytes of `partials`.
inline size_t partial_bytes(const PagedCounts& most, int64_t dim) {
  return static_cast<size_t>(most.partial_rows * (partial_dim(dim) + 1)) * sizeof(float);
}

void run_paged_append(const Call& call, const PagedBatch& batch, const PagedTokens& tokens);
void run_paged_attention(const Call& call, const PagedBatch& batch, const TensorView& q,
                         const TensorView& k_pages, const TensorView& v_pages,
                         const PagedAttentionOptions& options, const TensorView& out,
                         const TensorView& lse);

}  // namespace afnext::cuda
