#pragma once

#include "ops/paged_plan.h"

namespace afnext::cuda {

// afnext::paged_append on checked arguments.
void paged_append(const PagedTokens& tokens, const TensorView& page_table,
                  const TensorView& cu_seqlens, const TensorView& start, Stream stream);

}  // namespace afnext::cuda
