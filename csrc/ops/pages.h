// Checks that the ops over a paged cache share.
#pragma once

#include "afnext/error.h"

namespace afnext {

// k_pages and v_pages [P, Hkv, slot, D] for rows like `tokens` [T, H, D], their scales [P, Hkv,
// slot] if they are of 8 bits (null otherwise), and the table of `requests` requests.
void check_pages(const Check& check, const TensorView& tokens, const TensorView& k_pages,
                 const TensorView& v_pages, const TensorView* k_scales, const TensorView* v_scales,
                 const TensorView& page_table, int64_t requests);

// The table holds a page of the pool for each of the tokens [first, end) of request n; `what` names
// the argument that `end` comes from.
void check_tokens(const Check& check, const TensorView& page_table, const TensorView& pages,
                  int64_t n, int64_t first, int64_t end, const char* what);

// times [T] and inv_freq [R / 2], or neither; gives R / 2.
int64_t check_turn(const Check& check, const TensorView& tokens, const TensorView* times,
                   const TensorView* inv_freq);

}  // namespace afnext
