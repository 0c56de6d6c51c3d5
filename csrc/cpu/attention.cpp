// Forward attention by the online softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et al.
// 2022), with everything transposed: queries lie along the lanes, so that keys and values are read
// an element at a time, as they lie in memory, and the softmax runs down the lanes.
#include "cpu/attention.h"

#include "cpu/attention_block.h"
#include "cpu/scratch.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int kMaxBlocks = kItemRows / kBlockRows;
static_assert(kItemRows % kBlockRows == 0);

// What a block of queries carries from panel to panel.
struct Running {
  float *queries, *out;  // [padded(dim), kBlockRows], out before its division by the sum
  alignas(64) float peak[kBlockRows], total[kBlockRows];
};

void begin(Running& s, int64_t width) {
  __builtin_memset(s.out, 0, width * kBlockRows * sizeof(float));
  __builtin_memset(s.total, 0, sizeof(s.total));
  for (float& peak : s.peak) peak = -__builtin_inff();
}

// Scores become weights relative to the new peak of their row; `shrink` brings what was summed
// before to that peak.
template <int N>
AFNEXT_INLINE void softmax(float* scores, int64_t keys, Running& s, F32* shrink) {
  for (int n = 0; n < N; ++n) {
    float* column = scores + n * kLanes;
    const F32 before = load(s.peak + n * kLanes);
    F32 peak = before;
    for (int64_t j = 0; j < keys; ++j) peak = max(peak, load(column + j * kBlockRows));
    // Where nothing was seen yet all scores are -inf: any finite peak gives weights of zero.
    const F32 finite = select(peak == -__builtin_inff(), F32{}, peak);
    F32 total{};
    for (int64_t j = 0; j < keys; ++j) {
      const F32 weight = exp_nonpositive(load(column + j * kBlockRows) - finite);
      store(column + j * kBlockRows, weight);
      total += weight;
    }
    shrink[n] = exp_nonpositive(before - finite);
    store(s.total + n * kLanes, fma(load(s.total + n * kLanes), shrink[n], total));
    store(s.peak + n * kLanes, peak);
  }
}

// One panel of keys [first, first + count) meets one block of N vectors of queries.
template <int N>
void meet(const Block& block, const float* keys, const float* values, int64_t first, int64_t count,
          int64_t dim, float* scores, Running& s) {
  product<N>(count, dim, ByRow{keys, dim}, s.queries, kBlockRows, [&](int64_t j, int n, F32 score) {
    store(scores + j * kBlockRows + n * kLanes, score);
  });
  if (!block.sees_all(first, first + count)) {
    for (int64_t j = 0; j < count; ++j) {
      for (int n = 0; n < N; ++n) {
        float* score = scores + j * kBlockRows + n * kLanes;
        store(score, select(block.sees(first + j, n), load(score), broadcast(-__builtin_inff())));
      }
    }
  }
  F32 shrink[N];
  softmax<N>(scores, count, s, shrink);
  product<N>(dim, count, ByColumn{values, dim}, scores, kBlockRows,
             [&](int64_t d, int n, F32 value) {
               float* out = s.out + d * kBlockRows + n * kLanes;
               store(out, fma(load(out), shrink[n], value));
             });
}

template <typename Out>
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
        s.total[i] == 0.0f ? -__builtin_inff() : s.peak[i] + __builtin_logf(s.total[i]);
  }
}

// All keys of up to kItemRows rows, a panel at a time for all of their blocks. Panels begin at
// multiples of kPanelKeys, so that a row's result does not depend on the rows beside it.
template <typename T>
void attend(const AttentionArgs& a, const AttentionItem& item) {
  const AttentionProblem& p = a.problem;
  const AttentionSequence& sequence = p.sequences[item.sequence];
  const int64_t width = padded(p.dim), state = width * kBlockRows;

  float* memory = scratch<float>(
      0, 2 * kPanelKeys * p.dim + kPanelKeys * kBlockRows + (2 * kMaxBlocks + 1) * state);
  float* scores = memory;
  float* rows = scores + kPanelKeys * kBlockRows;
  float* states = rows + state;
  float* key_buffer = states + 2 * kMaxBlocks * state;
  float* value_buffer = key_buffer + kPanelKeys * p.dim;

  Block blocks[kMaxBlocks];
  Running running[kMaxBlocks];
  int count = 0;
  for (int64_t row = item.first; row < item.end; row += kBlockRows, ++count) {
    blocks[count].set(p, sequence, item.kv_head, row, item.end);
    running[count].queries = states + 2 * count * state;
    running[count].out = running[count].queries + state;
    load_queries<T>(blocks[count], rows, running[count].queries);
    begin(running[count], width);
  }

  const KeysAndValues<T> source{p, sequence.first_key, item.kv_head};
  const int64_t first = sequence.band.first(item.first / p.group);
  const int64_t end = sequence.band.end((item.end - 1) / p.group);
  for (int64_t key = first / kPanelKeys * kPanelKeys; key < end; key += kPanelKeys) {
    const int64_t keys = end - key < kPanelKeys ? end - key : kPanelKeys;
    const float* k = source.keys(key, keys, key_buffer);
    const float* v = source.values(key, keys, value_buffer);
    for (int i = 0; i < count; ++i) {
      if (!blocks[i].meets(key, key + keys)) continue;
      const int64_t reach = blocks[i].end_key - key < keys ? blocks[i].end_key - key : keys;
      switch (blocks[i].vectors()) {
        case 1:
          meet<1>(blocks[i], k, v, key, reach, p.dim, scores, running[i]);
          break;
        case 2:
          meet<2>(blocks[i], k, v, key, reach, p.dim, scores, running[i]);
          break;
        default:
          meet<3>(blocks[i], k, v, key, reach, p.dim, scores, running[i]);
      }
    }
  }
  for (int i = 0; i < count; ++i) {
    a.out_is_float ? write<float>(blocks[i], running[i], a, rows)
                   : write<T>(blocks[i], running[i], a, rows);
  }
}

template <typename T>
void run(const AttentionArgs& a) {
  turn_keys<T>(a.problem);
  parallel_for(a.item_count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) attend<T>(a, a.items[i]);
  });
}

}  // namespace

void attention(const AttentionArgs& args) {
  args.problem.dtype == DType::f32 ? run<float>(args) : run<bf16>(args);
}

AFNEXT_REGISTER(attention, AttentionArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
