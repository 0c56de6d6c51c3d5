// Forward attention by the online softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et al.
// 2022), with everything transposed: queries lie along the lanes, so that keys and values are read
// as they lie in memory, and the softmax runs down the lanes.
//
// How a panel of keys meets a block of queries has
//   Key                        keys and values as it reads them
//   kPanelKeys                 keys of a panel
//   Session                    lives in a thread while it meets panels
//   memory(problem)            floats that a panel needs
//   log_unit, read_queries     what a block's peak counts, and how its queries lie
//   How(source, first, count, memory)           a panel, for all blocks
//   meet<N>(block, first, count, scores, running)  its first `count` keys and N vectors of queries
#pragma once

#include "cpu/attention_meet.h"
#include "cpu/scratch.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int kMaxBlocks = kItemRows / kBlockRows;
static_assert(kItemRows % kBlockRows == 0);

void begin(Running& s, int64_t width) {
  __builtin_memset(s.out, 0, width * kBlockRows * sizeof(float));
  __builtin_memset(s.total, 0, sizeof(s.total));
  for (float& peak : s.peak) peak = -__builtin_inff();
}

template <typename How, typename Out>
void write(const Block& block, Running& s, const AttentionArgs& a, float* rows) {
  const AttentionProblem& p = a.problem;
  const int64_t width = padded(p.dim), vectors = block.vectors();
  for (int64_t n = 0; n < vectors; ++n) {
    const F32 total = load(s.total + n * kLanes);
    const F32 share = select(total == 0.0f, F32{}, 1.0f / total);
    for (int64_t d = 0; d < width; ++d) {
      float* out = s.out + d * kBlockRows + n * kLanes;
      store(out, load(out) * share);
    }
  }
  to_rows(s.out, width, vectors, rows);
  const int64_t heads = p.kv_heads * p.group;
  for (int64_t i = 0; i < block.count; ++i) {
    const int64_t token = block.token(i), head = block.head(i);
    store_row(static_cast<Out*>(a.out) + (token * heads + head) * p.dim, rows + i * width, p.dim);
    a.lse[head * p.query_tokens + token] =
        s.total[i] == 0.0f ? -__builtin_inff()
                           : How::log_unit(p, s.peak[i]) + __builtin_logf(s.total[i]);
  }
}

// All keys of up to kItemRows rows, a panel at a time for all of their blocks. Panels begin at
// multiples of kPanelKeys, so that a row's result does not depend on the rows beside it.
template <typename T, typename How>
void attend(const AttentionArgs& a, const AttentionItem& item) {
  const AttentionProblem& p = a.problem;
  const AttentionSequence& sequence = p.sequences[item.sequence];
  const int64_t width = padded(p.dim), state = width * kBlockRows;
  constexpr int64_t kScores = How::kPanelKeys * kBlockRows;

  float* scores = scratch<float>(0, kScores + (2 * kMaxBlocks + 1) * state + How::memory(p));
  float* rows = scores + kScores;
  float* states = rows + state;
  float* buffer = states + 2 * kMaxBlocks * state;

  Block blocks[kMaxBlocks];
  Running running[kMaxBlocks];
  int count = 0;
  for (int64_t row = item.first; row < item.end; row += kBlockRows, ++count) {
    blocks[count].set(p, sequence, item.kv_head, row, item.end);
    running[count].queries = states + 2 * count * state;
    running[count].out = running[count].queries + state;
    How::read_queries(blocks[count], rows, running[count].queries);
    begin(running[count], width);
  }

  const KeysAndValues<T, typename How::Key> source{p, sequence, item.kv_head};
  const int64_t first = sequence.band.first(item.first / p.group);
  const int64_t end = sequence.band.end((item.end - 1) / p.group);
  for (int64_t key = first / How::kPanelKeys * How::kPanelKeys; key < end; key += How::kPanelKeys) {
    const int64_t keys = end - key < How::kPanelKeys ? end - key : How::kPanelKeys;
    const How panel(source, key, keys, buffer);
    for (int i = 0; i < count; ++i) {
      if (!blocks[i].meets(key, key + keys)) continue;
      const int64_t reach = blocks[i].end_key - key < keys ? blocks[i].end_key - key : keys;
      switch (blocks[i].vectors()) {
        case 1:
          panel.template meet<1>(blocks[i], key, reach, scores, running[i]);
          break;
        case 2:
          panel.template meet<2>(blocks[i], key, reach, scores, running[i]);
          break;
        default:
          panel.template meet<3>(blocks[i], key, reach, scores, running[i]);
      }
    }
  }
  for (int i = 0; i < count; ++i) {
    a.out_is_float ? write<How, float>(blocks[i], running[i], a, rows)
                   : write<How, T>(blocks[i], running[i], a, rows);
  }
}

template <typename T, typename How>
void run(const AttentionArgs& a) {
  turn_keys<T, typename How::Key>(a.problem);
  parallel_for(a.item_count, 1, [&](int64_t begin, int64_t end) {
    [[maybe_unused]] const typename How::Session session;
    for (int64_t i = begin; i < end; ++i) attend<T, How>(a, a.items[i]);
  });
}

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
