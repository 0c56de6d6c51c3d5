#pragma once

#include "cpu/attention.h"
#include "cpu/parallel.h"

namespace afnext::cpu {

// Keys [first, end) of one KV head of one sequence: a tile owns their gradients, and adds to those
// of the queries after the tile before it, tile `index` - 1, has added to the same ones.
struct AttentionTile {
  int64_t sequence, kv_head, first, end, index;
};
constexpr int64_t kTileKeys = 256;

// What a row brings to the softmax: its log-sum-exp, the gradient of that, and its delta, the sum
// over D of grad_out * out, a step of D at a time.
constexpr int64_t kDeltaStep = 16;
constexpr int64_t softmax_rows(int64_t dim) { return 2 + (dim + kDeltaStep - 1) / kDeltaStep; }
// What a row takes of queries and gradients, arranged for the products: floats by channel, at most.
constexpr int64_t kArranged = 4;

struct AttentionBackwardArgs {
  const AttentionProblem& problem;
  const AttentionTile* tiles;  // each after the one before it of its head
  int64_t tile_count;
  const AttentionItem* query_items;
  int64_t query_item_count;
  Heads grad_out, out;
  bool grad_out_is_float, out_is_float;
  const float *grad_lse, *lse;  // [Hq, Tq]; grad_lse may be null
  Progress* progress;           // of tiles by their index
  // Working memory for all rows of all KV heads: [softmax_rows(dim), kBlockRows] and
  // [padded(dim), kBlockRows] by blocks, and kArranged times as much.
  int64_t row_count;
  float *softmax, *query_sums, *arranged;
  void *grad_q, *grad_k, *grad_v;  // contiguous
};

extern KernelTable<AttentionBackwardArgs> attention_backward_kernels;
// bfloat16 on AMX tiles, for what fits_tiles(); emulated at the level avx512, for tests.
extern KernelTable<AttentionBackwardArgs> attention_backward_tiles_kernels;

bool fits_tiles(const AttentionBackwardArgs& args);

}  // namespace afnext::cpu
