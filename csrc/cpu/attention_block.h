// Blocks of queries and panels of keys: what attention's forward and backward share.
#pragma once

#include "cpu/attention.h"
#include "cpu/parallel.h"
#include "cpu/simd/product.h"
#include "cpu/simd/rotate_row.h"
#include "cpu/simd/rows.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kBlockRows = kTileVectors * kLanes;  // queries of a block lie along the lanes
constexpr int64_t kPanelKeys = 64;
constexpr int64_t kMaxDim = 256;

AFNEXT_INLINE int64_t padded(int64_t dim) { return (dim + kLanes - 1) / kLanes * kLanes; }

// `count` rows of keys or values in float32, `dim` apart: where they lie already, or in `buffer`.
template <typename T>
const float* panel(const T* rows, int64_t stride, int64_t count, int64_t dim, float* buffer) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (stride == dim) return rows;
  }
  for (int64_t i = 0; i < count; ++i) {
    const T* x = rows + i * stride;
    float* out = buffer + i * dim;
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) store(out + d, load(x + d));
    for (; d < dim; ++d) out[d] = to_float(x[d]);
  }
  return buffer;
}

// The keys (turned, where there is a rotation) and values of one KV head of one sequence.
template <typename T>
struct KeysAndValues {
  const AttentionProblem& p;
  int64_t token, head;

  const float* keys(int64_t first, int64_t count, float* buffer) const {
    if (p.inv_freq != nullptr) {
      return p.turned_keys + (head * p.key_tokens + token + first) * p.dim;
    }
    return rows(p.k, first, count, buffer);
  }
  const float* values(int64_t first, int64_t count, float* buffer) const {
    return rows(p.v, first, count, buffer);
  }

 private:
  const float* rows(const Heads& x, int64_t first, int64_t count, float* buffer) const {
    const T* data = static_cast<const T*>(x.data) + (token + first) * x.token + head * x.head;
    return panel(data, x.token, count, p.dim, buffer);
  }
};

// cos and sin of one token, kept while rows of the same token follow.
struct Turn {
  int64_t token = -1;
  alignas(64) float cos[kMaxDim / 2], sin[kMaxDim / 2];

  AFNEXT_INLINE_METHOD void at(int64_t next, const float* times, const AttentionProblem& p) {
    if (next == token) return;
    token = next;
    sincos_row(times[token], p.inv_freq, p.half, cos, sin);
  }
  AFNEXT_INLINE_METHOD void back(int64_t next, const float* times, const AttentionProblem& p) {
    if (next == token) return;
    at(next, times, p);
    for (int64_t i = 0; i < p.half; ++i) sin[i] = -sin[i];
  }
};

// Keys are turned once, before the queries meet them.
template <typename T>
void turn_keys(const AttentionProblem& p) {
  if (p.inv_freq == nullptr) return;
  parallel_for(p.key_tokens, 16, [&](int64_t begin, int64_t end) {
    Turn turn;
    alignas(64) float row[kMaxDim];
    for (int64_t token = begin; token < end; ++token) {
      turn.at(token, p.times_k, p);
      for (int64_t head = 0; head < p.kv_heads; ++head) {
        const T* x = static_cast<const T*>(p.k.data) + token * p.k.token + head * p.k.head;
        load_row(x, p.dim, row);
        rotate_row(row, turn.cos, turn.sin, p.half, p.interleaved, row);
        store_row(p.turned_keys + (head * p.key_tokens + token) * p.dim, row, p.dim);
      }
    }
  });
}

// Which rows a block holds, and the keys that each of them sees.
struct Block {
  const AttentionProblem* problem;
  const AttentionSequence* sequence;
  int64_t kv_head, row, count;       // rows [row, row + count) of the sequence and KV head
  int64_t first_key, end_key;        // seen by one row or another
  int64_t first_common, end_common;  // seen by every row
  alignas(64) int32_t first[kBlockRows], end[kBlockRows];

  void set(const AttentionProblem& p, const AttentionSequence& s, int64_t head, int64_t begin,
           int64_t limit) {
    problem = &p, sequence = &s, kv_head = head, row = begin;
    count = limit - begin < kBlockRows ? limit - begin : kBlockRows;
    const int64_t top = begin / p.group, bottom = (begin + count - 1) / p.group;
    first_key = s.band.first(top), end_key = s.band.end(bottom);
    first_common = s.band.first(bottom), end_common = s.band.end(top);
    __builtin_memset(first, 0, sizeof(first));
    __builtin_memset(end, 0, sizeof(end));
    for (int64_t i = 0, query = top; i < count; ++query) {  // a query's rows stand together
      const int64_t next = (query + 1) * p.group - begin, stop = next < count ? next : count;
      const auto from = static_cast<int32_t>(s.band.first(query));
      const auto to = static_cast<int32_t>(s.band.end(query));
      for (; i < stop; ++i) first[i] = from, end[i] = to;
    }
  }

  int64_t vectors() const { return (count + kLanes - 1) / kLanes; }
  int64_t token(int64_t i) const { return sequence->first_query + (row + i) / problem->group; }
  int64_t head(int64_t i) const { return kv_head * problem->group + (row + i) % problem->group; }
  bool meets(int64_t begin, int64_t limit) const { return begin < end_key && limit > first_key; }
  bool sees_all(int64_t begin, int64_t limit) const {
    return first_common <= begin && limit <= end_common;
  }
  // Whether each row of vector n sees this key.
  AFNEXT_INLINE_METHOD I32 sees(int64_t key, int n) const {
    I32 low, high;
    __builtin_memcpy(&low, first + n * kLanes, sizeof(low));
    __builtin_memcpy(&high, end + n * kLanes, sizeof(high));
    const int32_t j = static_cast<int32_t>(key);
    return (low <= j) & (high > j);
  }
};

// [kBlockRows, width] to [width, kBlockRows]; width is a multiple of kLanes.
AFNEXT_INLINE void to_columns(const float* rows, int64_t width, int64_t vectors, float* columns) {
  for (int64_t n = 0; n < vectors; ++n) {
    for (int64_t d = 0; d < width; d += kLanes) {
      F32 square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = load(rows + (n * kLanes + i) * width + d);
      transpose(square);
      for (int i = 0; i < kLanes; ++i)
        store(columns + (d + i) * kBlockRows + n * kLanes, square[i]);
    }
  }
}
// And back.
AFNEXT_INLINE void to_rows(const float* columns, int64_t width, int64_t vectors, float* rows) {
  for (int64_t n = 0; n < vectors; ++n) {
    for (int64_t d = 0; d < width; d += kLanes) {
      F32 square[kLanes];
      for (int i = 0; i < kLanes; ++i)
        square[i] = load(columns + (d + i) * kBlockRows + n * kLanes);
      transpose(square);
      for (int i = 0; i < kLanes; ++i) store(rows + (n * kLanes + i) * width + d, square[i]);
    }
  }
}

// Rows of a block out of [tokens, heads, D], as float32 [kBlockRows, padded(dim)]; zeros past them.
template <typename T>
void load_rows(const Block& block, const Heads& x, float* rows) {
  const int64_t width = padded(block.problem->dim);
  for (int64_t i = 0; i < block.count; ++i) {
    load_row(static_cast<const T*>(x.data) + block.token(i) * x.token + block.head(i) * x.head,
             block.problem->dim, rows + i * width);
  }
  __builtin_memset(rows + block.count * width, 0, (kBlockRows - block.count) * width * 4);
}

// The queries of a block, turned and scaled: rows as above, and columns [padded(dim), kBlockRows].
template <typename T>
void load_queries(const Block& block, float* rows, float* columns) {
  const AttentionProblem& p = *block.problem;
  const int64_t width = padded(p.dim);
  load_rows<T>(block, p.q, rows);
  if (p.inv_freq != nullptr) {
    Turn turn;
    for (int64_t i = 0; i < block.count; ++i) {
      turn.at(block.token(i), p.times_q, p);
      rotate_row(rows + i * width, turn.cos, turn.sin, p.half, p.interleaved, rows + i * width);
    }
  }
  for (int64_t i = 0; i < block.count * width; i += kLanes)
    store(rows + i, load(rows + i) * p.scale);
  to_columns(rows, width, block.vectors(), columns);
}

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
