// Blocks of queries and panels of keys: what attention's forward and backward share.
#pragma once

#include <type_traits>

#include "cpu/attention.h"
#include "cpu/parallel.h"
#include "cpu/simd/product.h"
#include "cpu/simd/rotate_row.h"
#include "cpu/simd/rows.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kBlockRows = kTileVectors * kLanes;  // queries of a block lie along the lanes
constexpr int64_t kMaxDim = 256;

AFNEXT_INLINE int64_t padded(int64_t dim) { return (dim + kLanes - 1) / kLanes * kLanes; }

// `count` rows of T as rows of To, `width` apart, what is past dim left alone.
template <typename T, typename To>
void copy_rows(const T* rows, int64_t stride, int64_t count, int64_t dim, To* out, int64_t width) {
  for (int64_t i = 0; i < count; ++i) {
    const T* x = rows + i * stride;
    To* to = out + i * width;
    if constexpr (std::is_same_v<T, To>) {
      __builtin_memcpy(to, x, dim * sizeof(T));
    } else {
      int64_t d = 0;
      for (; d + kLanes <= dim; d += kLanes) store(to + d, load(x + d));
      for (; d < dim; ++d) from_float(to + d, to_float(x[d]));
    }
  }
}

// The keys (turned, where there is a rotation) and values of one KV head of one sequence, as rows
// of To, even() or more apart: where they lie already, or in a buffer.
template <typename T, typename To>
struct KeysAndValues {
  const AttentionProblem& p;
  const AttentionSequence& s;
  int64_t head;

  struct Rows {
    const To* data;
    int64_t stride;
  };

  Rows keys(int64_t first, int64_t count, To* buffer) const {
    if (p.inv_freq != nullptr && s.pages == nullptr) {
      const To* turned = reinterpret_cast<const To*>(p.turned_keys);
      return {turned + (head * p.key_tokens + s.first_key + first) * p.even(), p.even()};
    }
    return rows(p.k, p.k_scales, first, count, buffer);
  }
  Rows values(int64_t first, int64_t count, To* buffer) const {
    return rows(p.v, p.v_scales, first, count, buffer);
  }

 private:
  Rows rows(const Heads& x, const float* scales, int64_t first, int64_t count, To* buffer) const {
    if (scales != nullptr) return scaled_rows(x, scales, first, count, buffer);
    const T* data = static_cast<const T*>(x.data);
    if (s.pages == nullptr) {
      const T* from = data + (s.first_key + first) * x.token + head * x.head;
      if constexpr (std::is_same_v<T, To>) {
        if (p.dim % 2 == 0 || sizeof(T) == sizeof(float)) return {from, x.token};
      }
      copy_rows(from, x.token, count, p.dim, buffer, p.even());
    } else {
      for (int64_t done = 0; done < count;) {
        const int64_t key = first + done, slot = key % p.slots, left = p.slots - slot;
        const int64_t run = count - done < left ? count - done : left;
        const T* from =
            data + ((s.pages[key / p.slots] * p.kv_heads + head) * p.slots + slot) * p.dim;
        if constexpr (std::is_same_v<T, To>) {
          if (run == count && (p.dim % 2 == 0 || sizeof(T) == sizeof(float))) return {from, p.dim};
        }
        copy_rows(from, p.dim, run, p.dim, buffer + done * p.even(), p.even());
        done += run;
      }
    }
    return {buffer, p.even()};
  }

  Rows scaled_rows(const Heads& x, const float* scales, int64_t first, int64_t count,
                   To* buffer) const {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t key = first + i;
      const int64_t row = (s.pages[key / p.slots] * p.kv_heads + head) * p.slots + key % p.slots;
      scale_row(static_cast<const int8_t*>(x.data) + row * p.dim, scales[row], p.dim,
                buffer + i * p.even());
    }
    return {buffer, p.even()};
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
template <typename T, typename To>
void turn_keys(const AttentionProblem& p) {
  if (p.inv_freq == nullptr || p.slots > 0) return;
  To* turned = reinterpret_cast<To*>(p.turned_keys);
  parallel_for(p.key_tokens, 16, [&](int64_t begin, int64_t end) {
    Turn turn;
    alignas(64) float row[kMaxDim];
    for (int64_t token = begin; token < end; ++token) {
      turn.at(token, p.times_k, p);
      for (int64_t head = 0; head < p.kv_heads; ++head) {
        const T* x = static_cast<const T*>(p.k.data) + token * p.k.token + head * p.k.head;
        load_row(x, p.dim, row);
        rotate_row(row, turn.cos, turn.sin, p.half, p.interleaved, row);
        To* to = turned + (head * p.key_tokens + token) * p.even();
        store_row(to, row, p.dim);
        if (p.dim % 2 != 0) from_float(to + p.dim, 0.0f);
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

// The queries of a block, turned: rows as above.
template <typename T>
void load_turned(const Block& block, float* rows) {
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
}

// The same times the scale, and as columns [padded(dim), kBlockRows].
template <typename T>
void load_queries(const Block& block, float* rows, float* columns) {
  const int64_t width = padded(block.problem->dim);
  load_turned<T>(block, rows);
  for (int64_t i = 0; i < block.count * width; i += kLanes)
    store(rows + i, load(rows + i) * block.problem->scale);
  to_columns(rows, width, block.vectors(), columns);
}

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
