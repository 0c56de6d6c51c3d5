#pragma once

#include "afnext/tensor.h"

namespace afnext::cuda {

// What paged_append moves: checked arguments, null as in afnext::paged_append.
struct PagedTokens {
  const TensorView &k, &v, &k_pages, &v_pages;
  const TensorView *times, *inv_freq;
  bool interleaved;
  const TensorView *k_scales, *v_scales;
};

// afnext::paged_append on checked arguments.
void paged_append(const PagedTokens& tokens, const TensorView& page_table,
                  const TensorView& cu_seqlens, const TensorView& start, Stream stream);

}  // namespace afnext::cuda
