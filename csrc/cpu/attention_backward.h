#pragma once

#include "cpu/attention.h"

namespace afnext::cpu {

// The key tokens [first, end) of one KV head of one sequence: an item owns their gradients, and
// adds to one of the parts that each query's gradient is the sum of.
struct AttentionKeyItem {
  int64_t sequence, kv_head, first, end, part;
};
// Keys whose gradients are summed at a time; items hold whole multiples, but for the last one.
constexpr int64_t kTileKeys = 256;

// A row's delta, the sum over D of grad_out * out, is kept a step of D at a time.
constexpr int64_t kDeltaStep = 16;
constexpr int64_t delta_rows(int64_t dim) { return (dim + kDeltaStep - 1) / kDeltaStep; }

struct AttentionBackwardArgs {
  const AttentionProblem& problem;
  const AttentionKeyItem* key_items;  // the longest first
  int64_t key_item_count;
  const AttentionItem* query_items;
  int64_t query_item_count;
  Heads grad_out, out;
  bool grad_out_is_float, out_is_float;
  const float *grad_lse, *lse;  // [Hq, Tq]; grad_lse may be null
  // Working memory by blocks of rows like a part: [delta_rows(dim), kBlockRows] each.
  float* deltas;
  float* parts;  // working memory [part_count, part_size]
  int64_t part_count, part_size;
  void *grad_q, *grad_k, *grad_v;  // contiguous
};

extern KernelTable<AttentionBackwardArgs> attention_backward_kernels;

}  // namespace afnext::cpu
