// What the attention kernels are given; csrc/ops/attention.cpp fills it in.
#pragma once

#include "afnext/tensor.h"
#include "cpu/band.h"
#include "cpu/isa.h"

namespace afnext::cpu {

// Elements of [tokens, heads, D] by strides; the last is 1.
struct Heads {
  const void* data;
  int64_t token, head;
};

struct AttentionSequence {
  int64_t first_query, first_key;  // tokens of the packed batch
  int64_t key_tokens;              // of the sequence; its band may end earlier
  int64_t first_row, rows;         // per KV head, in working memory laid out by blocks
  Band band;
  const int32_t* pages = nullptr;  // its row of the page table, where keys lie in pages
};

// The rows of a sequence and KV head are its queries times the heads that share the KV head: row r
// is query r / group, head r % group. They fill the lanes, so that one pass over the keys serves
// all.
struct AttentionProblem {
  DType dtype;
  int64_t dim, group, kv_heads;
  int64_t query_tokens, key_tokens;  // of the packed batch
  Heads q, k, v;
  // Rotation; inv_freq is null without.
  const float *times_q, *times_k, *inv_freq;
  int64_t half;
  bool interleaved;
  float* turned_keys;  // working memory of turned_size()
  float scale;
  const AttentionSequence* sequences;
  // Keys and values in pages of so many slots, [page, kv_heads, slot, dim], instead of packed; keys
  // are turned already.
  int64_t slots = 0;
  // Pages of int8: a scale for each row, [page, kv_heads, slot]; null otherwise.
  const float *k_scales = nullptr, *v_scales = nullptr;

  // Elements of the turned keys [kv_heads, key_tokens, even], an even number of channels each.
  int64_t even() const { return dim + dim % 2; }
  int64_t turned_size() const { return kv_heads * key_tokens * even(); }
};

// Rows [first, end) of one KV head of one sequence; at most kItemRows.
struct AttentionItem {
  int64_t sequence, kv_head, first, end;
};
constexpr int64_t kItemRows = 192;
// Working memory laid out by blocks rounds D up to kDimUnit and rows to kRowPad, two blocks of
// kRowUnit; any lane count divides these.
constexpr int64_t kRowUnit = 48, kRowPad = 2 * kRowUnit, kDimUnit = 16;

struct AttentionArgs {
  const AttentionProblem& problem;
  const AttentionItem* items;  // the longest first
  int64_t item_count;
  void* out;  // contiguous
  bool out_is_float;
  float* lse;
};

extern KernelTable<AttentionArgs> attention_kernels;
// bfloat16 on AMX tiles, for what fits_tiles(); emulated at the level avx512, for tests.
extern KernelTable<AttentionArgs> attention_tiles_kernels;

bool fits_tiles(const AttentionArgs& args);
// By the kernel that serves these arguments at the level in use.
void run_attention(const AttentionArgs& args);

}  // namespace afnext::cpu
