// Backward attention: weights are computed again from the log-sum-exp (FlashAttention, Dao et al.
// 2022). A tile of keys owns its gradients while all queries pass by; a query's gradient is summed
// in float32 over the tiles in their order, whichever threads they run on.
//
// How a panel of keys meets a block of queries has
//   Key, kBlocks, kLogUnit, key_scale(problem)    as InFloats (attention_backward_meet.h) says
//   Session                                       lives in a thread while it arranges or meets
//   How(args)                                     in working memory of the thread
//   arrange(queries)                              once a block, its softmax's rows being there
//   read_keys(source, first, count)               once a tile
//   meet<N>(i, queries, panel)                    for each block i that meets the panel; then
//   add_to_keys(queries, panel, first, end, grad_keys, grad_values)    for those rows of the blocks
//   add_to_queries<N>(i, first, end, sums)        once all panels are met
#pragma once

#include "cpu/attention_backward_meet.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

// What the tiles read of the queries: all of it once, in the order in which they read it.
template <typename How>
void arrange(const AttentionBackwardArgs& a, const AttentionItem& item) {
  const AttentionProblem& p = a.problem;
  How how(a);
  Queries q;
  for (int64_t row = item.first; row < item.end; row += kBlockRows) {
    q.set(a, p.sequences[item.sequence], item.kv_head, row, item.end);
    for (int64_t i = 0; i < kBlockRows; ++i) {
      const bool real = i < q.block.count;
      const int64_t from = real ? q.block.head(i) * p.query_tokens + q.block.token(i) : 0;
      // A row that sees no key has weights of zero by its mask, whatever stands here.
      q.lse[i] = real && a.lse[from] != -__builtin_inff() ? a.lse[from] / How::kLogUnit : 0.0f;
      q.grad_lse[i] = real && a.grad_lse != nullptr ? a.grad_lse[from] : 0.0f;
    }
    how.arrange(q);
  }
}

// Calls f with the number of vectors that the block fills, as a constant.
template <typename F>
void with_vectors(const Block& block, const F& f) {
  switch (block.vectors()) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 2:
      return f(std::integral_constant<int, 2>());
    default:
      return f(std::integral_constant<int, 3>());
  }
}

// All queries pass by the keys of a tile, a few blocks at a time.
template <typename T, typename How>
void tile(const AttentionBackwardArgs& a, const AttentionTile& t) {
  const AttentionProblem& p = a.problem;
  const AttentionSequence& s = p.sequences[t.sequence];
  const int64_t width = padded(p.dim), block_size = width * kBlockRows;
  const int64_t size = padded(t.end - t.first) * width;  // whole tiles, where there are such
  float* grad_keys = scratch<float>(1, 2 * size);
  float* grad_values = grad_keys + size;
  __builtin_memset(grad_keys, 0, 2 * size * sizeof(float));

  How how(a);
  const int64_t end = t.end < s.band.keys ? t.end : s.band.keys;
  const int64_t rows = t.first < end ? s.band.queries * p.group : 0;
  if (rows > 0) how.read_keys({p, s, t.kv_head}, t.first, end - t.first);
  Queries blocks[How::kBlocks];
  constexpr int64_t kRows = How::kBlocks * kBlockRows;
  for (int64_t row = 0; row < rows; row += kRows) {
    const int64_t limit = row + kRows < rows ? row + kRows : rows;
    const int64_t first_key = s.band.first(row / p.group);
    if (first_key >= end || s.band.end((limit - 1) / p.group) <= t.first) continue;
    int count = 0;
    for (int64_t at = row; at < limit; at += kBlockRows)
      blocks[count++].set(a, s, t.kv_head, at, limit);
    for (int64_t key = t.first; key < end; key += kPanelKeys) {
      const Panel panel{key, key - t.first, end - key < kPanelKeys ? end - key : kPanelKeys};
      int64_t first = 0, last = 0;  // rows that meet the panel
      for (int i = 0; i < count; ++i) {
        const Block& block = blocks[i].block;
        if (!block.meets(key, key + panel.count)) continue;
        with_vectors(block, [&](auto n) { how.template meet<n>(i, blocks[i], panel); });
        if (last == 0) first = i * kBlockRows;
        last = i * kBlockRows + block.count;
      }
      if (last > 0) how.add_to_keys(blocks[0], panel, first, last, grad_keys, grad_values);
    }
    float* sums = a.query_sums + blocks[0].row * width;
    if (first_key >= t.first) {  // no tile before this one meets these rows
      __builtin_memset(sums, 0, count * block_size * sizeof(float));
    } else {
      a.progress[t.index - 1].wait_for(limit);
    }
    for (int i = 0; i < count; ++i) {
      const Block& block = blocks[i].block;
      if (!block.meets(t.first, end)) continue;
      const int64_t skipped = block.first_key > t.first ? block.first_key - t.first : 0;
      const int64_t reach = (block.end_key < end ? block.end_key : end) - t.first;
      with_vectors(block, [&](auto n) {
        how.template add_to_queries<n>(i, skipped / kPanelKeys * kPanelKeys, reach,
                                       sums + i * block_size);
      });
    }
    a.progress[t.index].reach(limit);
  }

  Turn turn;
  for (int64_t j = 0; j < t.end - t.first; ++j) {
    const int64_t token = s.first_key + t.first + j;
    float* grad_key = grad_keys + j * width;
    for (int64_t d = 0; d < width; d += kLanes)
      store(grad_key + d, load(grad_key + d) * How::key_scale(p));
    if (p.inv_freq != nullptr) {
      turn.back(token, p.times_k, p);
      rotate_row(grad_key, turn.cos, turn.sin, p.half, p.interleaved, grad_key);
    }
    const int64_t to = (token * p.kv_heads + t.kv_head) * p.dim;
    store_row(static_cast<T*>(a.grad_k) + to, grad_key, p.dim);
    store_row(static_cast<T*>(a.grad_v) + to, grad_values + j * width, p.dim);
  }
}

// The sums of the queries' gradients, turned back.
template <typename T>
void query_gradients(const AttentionBackwardArgs& a, const AttentionItem& item) {
  const AttentionProblem& p = a.problem;
  const AttentionSequence& s = p.sequences[item.sequence];
  const int64_t width = padded(p.dim), size = width * kBlockRows;
  float* total = scratch<float>(0, 2 * size);
  float* rows = total + size;
  Queries q;
  const Block& block = q.block;
  Turn turn;
  for (int64_t row = item.first; row < item.end; row += kBlockRows) {
    q.set(a, s, item.kv_head, row, item.end);
    const bool seeing = block.first_key < block.end_key;  // or no tile has met it
    const float* sums = a.query_sums + q.row * width;
    for (int64_t i = 0; i < size; i += kLanes)
      store(total + i, seeing ? load(sums + i) * p.scale : F32{});
    to_rows(total, width, block.vectors(), rows);
    for (int64_t i = 0; i < block.count; ++i) {
      const int64_t token = block.token(i);
      float* grad = rows + i * width;
      if (p.inv_freq != nullptr) {
        turn.back(token, p.times_q, p);
        rotate_row(grad, turn.cos, turn.sin, p.half, p.interleaved, grad);
      }
      store_row(static_cast<T*>(a.grad_q) + (token * p.kv_heads * p.group + block.head(i)) * p.dim,
                grad, p.dim);
    }
  }
}

template <typename T, typename How>
void run(const AttentionBackwardArgs& a) {
  parallel_for(a.query_item_count, 1, [&](int64_t begin, int64_t end) {
    [[maybe_unused]] const typename How::Session session;
    for (int64_t i = begin; i < end; ++i) arrange<How>(a, a.query_items[i]);
  });
  turn_keys<T, typename How::Key>(a.problem);
  parallel_in_order(a.tile_count, [&](int64_t i) {
    [[maybe_unused]] const typename How::Session session;
    tile<T, How>(a, a.tiles[i]);
  });
  parallel_for(a.query_item_count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) query_gradients<T>(a, a.query_items[i]);
  });
}

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
