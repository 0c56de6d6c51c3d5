// Checks that the ops over a paged cache share.
#pragma once

#include "afnext/error.h"
#include "ops/paged_plan.h"

namespace afnext {

constexpr int64_t kMaxHeadDim = 256;  // of paged attention, and of paged_append on CUDA

// k_pages and v_pages [P, Hkv, slot, D] for rows like `tokens` [T, H, D] and their scales [P, Hkv,
// slot] if they are of 8 bits (null otherwise).
void check_pages(const Check& check, const TensorView& tokens, const TensorView& k_pages,
                 const TensorView& v_pages, const TensorView* k_scales, const TensorView* v_scales);

// The pages of `requests` requests: int32 [N, max_pages].
void check_table(const Check& check, const TensorView& page_table, int64_t requests);

// The table holds a page of the pool for each of the tokens [first, end) of request n; `what` names
// the argument that `end` comes from.
void check_tokens(const Check& check, const TensorView& page_table, const TensorView& pages,
                  int64_t n, int64_t first, int64_t end, const char* what);

// What does not depend on the batch: tensors of paged_append, and of paged_attention.
void check_append(const Check& check, const PagedTokens& tokens);
void check_attention(const Check& check, const TensorView& q, const TensorView& k_pages,
                     const TensorView& v_pages, const PagedAttentionOptions& options,
                     const TensorView& out, const TensorView& lse);

// k_pages are as many and as large as those that a plan was made for.
void check_like_plan(const Check& check, const TensorView& k_pages, const TensorView& planned);

}  // namespace afnext
