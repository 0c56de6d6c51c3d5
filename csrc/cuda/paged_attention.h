#pragma once

#include "afnext/paged_attention.h"

namespace afnext::cuda {

// afnext::paged_attention on checked arguments.
void paged_attention(const TensorView& q, const TensorView& k_pages, const TensorView& v_pages,
                     const TensorView& page_table, const TensorView& cu_seqlens_q,
                     const TensorView& kv_lengths, const PagedAttentionOptions& options,
                     const TensorView& out, const TensorView& lse, Stream stream);

}  // namespace afnext::cuda
