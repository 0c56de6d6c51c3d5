// What the paged attention kernel is given; csrc/ops/paged_attention.cpp fills it in.
#pragma once

#include "cpu/attention.h"

namespace afnext::cpu {

struct PagedRequest {
  int64_t first_query;   // token of the packed batch
  const int32_t* pages;  // its row of the table
  Band band;
  int64_t parts, first_partial;  // in `parts` > 1 parts of keys, kept from this row of partials on
};

// Rows [first_row, end_row) of one KV head of one request (row r is query r / group, head
// r % group) meet the keys [first_key, end_key): part number `part`.
struct PagedItem {
  int64_t request, kv_head, first_row, end_row, first_key, end_key, part;
};
constexpr int64_t kPagedItemRows = 192;
// Keys of a part. Fixed, so that a request's result depends on nothing but the request.
constexpr int64_t kPartKeys = 1024;

struct PagedAttentionArgs {
  DType dtype;
  int64_t dim, group, kv_heads, slots, query_tokens;
  Heads q;
  const void *k_pages, *v_pages;     // contiguous [pages, kv_heads, slots, dim]
  const float *k_scales, *v_scales;  // of int8 pages, [pages, kv_heads, slots]; null otherwise
  const float *times, *inv_freq;     // null without rotation
  int64_t half;
  bool interleaved;
  float scale;
  const PagedRequest* requests;
  int64_t request_count;
  const PagedItem* items;
  int64_t item_count;
  int64_t threads;  // that are worth waking, at most
  // Partial results, float32: [partials, dim] and [partials]; row r of part p of KV head h of a
  // request is first_partial + (h * parts + p) * rows + r.
  float *partial_out, *partial_lse;
  void* out;  // contiguous
  float* lse;
};

extern KernelTable<PagedAttentionArgs> paged_attention_kernels;

}  // namespace afnext::cpu
