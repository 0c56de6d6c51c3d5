// What attention's kernels are told, and the mask.
//
// The rows of a sequence and KV head are its queries times the heads that share the KV head: row r
// is query r / group, head r % group. So heads that read the same keys share a tile of them.
#pragma once

#include "cuda/arch/platform.h"

namespace afnext::cuda {

// Elements of [tokens, heads, dim] by strides; the last is 1.
struct Heads {
  const void* data;
  int64_t token, head;

  AFNEXT_DEVICE int64_t at(int64_t token_index, int head_index) const {
    return token_index * token + head_index * head;
  }
  // Whether the copy engine takes it: it steps by what it is told, but not by nothing.
  bool steps() const { return token > 0 && head > 0; }
};

// The mask: query i sees keys [first(i), end(i)). Neither bound ever falls from one query to the
// next, so a tile's trip count comes from its first and last query, and so does whether all of a
// tile of keys is seen by all of them: only tiles on an edge look at single keys. Causality,
// windows and key lengths are all of this kind.
struct Band {
  static constexpr int kUnlimited = 1 << 30;

  int queries, keys;  // keys that count: beyond them nobody sees
  int left, right;    // keys before and after a query's own

  __host__ AFNEXT_DEVICE int first(int query) const {
    return within(int64_t{query} + keys - queries - left);
  }
  __host__ AFNEXT_DEVICE int end(int query) const {
    return within(int64_t{query} + keys - queries + right + 1);
  }

 private:
  __host__ AFNEXT_DEVICE int within(int64_t key) const {
    return key < 0 ? 0 : key > keys ? keys : static_cast<int>(key);
  }
};

// A sequence among packed tokens, as a call's offsets and lengths give it.
struct PackedSequence {
  int first_query, first_key;
  int keys;  // those beyond its band's meet no query
  Band band;
};

struct AttentionSequence {
  int first_query, first_key;
  Band band;
  int first_tile;  // of its rows, among those of all sequences
};

// A block's work: rows from first_row on of one KV head of one sequence.
struct AttentionItem {
  AttentionSequence sequence;
  int kv_head, first_row;
};

struct AttentionParams {
  Heads q, k, v;  // k is turned already, if it turns
  int group, kv_heads, dim;
  int query_tokens, key_tokens;
  float scale, scale_log2;  // the second of scores without a sign and in powers of 2, never 0
  // Turns q: inv_freq is null without a rotation.
  const float *times_q, *inv_freq;
  int half;
  bool interleaved;
  bool wide_q;             // q comes in whole units of 16 bytes and turns two channels at a time
  AttentionSequence only;  // where there is one sequence, which costs no upload
  const AttentionSequence* sequences;  // else, by first_tile
  int sequence_count;
  int tile_rows, items;
  void* out;  // [tokens, heads, dim]
  bool out_is_float;
  bool wide_out;  // rows begin and end at 16 bytes
  float* lse;     // [heads, tokens]
};

// The `index`-th piece of work. The last rows of a causal mask see the most keys and go first, so
// that none of them is left to the end.
AFNEXT_DEVICE AttentionItem item_of(const AttentionParams& p, int index) {
  const int tile = (p.items - 1 - index) / p.kv_heads, kv_head = (p.items - 1 - index) % p.kv_heads;
  AttentionSequence sequence = p.only;
  if (p.sequences != nullptr) {
    int low = 0, high = p.sequence_count;  // the last sequence with first_tile <= tile
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (p.sequences[middle].first_tile <= tile ? low : high) = middle;
    }
    sequence = p.sequences[low];
  }
  return {sequence, kv_head, (tile - sequence.first_tile) * p.tile_rows};
}

}  // namespace afnext::cuda
