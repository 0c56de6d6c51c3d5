#pragma once

#include "cpu/attention.h"

namespace afnext::cpu {

struct PagedAppendArgs {
  DType dtype;
  int64_t kv_heads, dim, slots, requests;
  Heads k, v;
  void *k_pages, *v_pages;     // contiguous [pages, kv_heads, slots, dim]
  float *k_scales, *v_scales;  // of int8 pages, [pages, kv_heads, slots]; null otherwise
  const int32_t* page_table;
  int64_t table_stride;
  const int32_t *cu_seqlens, *start;
  const float *times, *inv_freq;  // null without rotation
  int64_t half;
  bool interleaved;
};

extern KernelTable<PagedAppendArgs> paged_append_kernels;

}  // namespace afnext::cpu
