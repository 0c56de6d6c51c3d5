// What the kernels of attention's backward are given, and the two sides that a pair of a row and a
// key can be seen from.
//
// The rows of a sequence and KV head are its queries times the heads that share the KV head: row r
// is query r / group, head r % group. With P = exp(scale q k - lse), dS = P (grad_out v - delta)
//
//   grad_k = scale dS^T q,  grad_v = P^T grad_out     sums over rows
//   grad_q = scale dS k                               sums over keys
//
// Both are one algorithm: a block keeps a tile of one side (x, y), the other side (u, w) streams
// past, P and dS come of x u and y w, and the sums over what streamed past stay in registers.
#pragma once

#include "cuda/arch/platform.h"

namespace afnext::cuda {

// Elements of [tokens, heads, dim] by strides; the last is 1.
struct Heads {
  void* data;
  int64_t token, head;
};

struct BackwardSequence {
  int first_query, queries;
  int first_key, keys, seen;  // keys beyond `seen` count for nothing
};

// Keys or rows [first, first + the block's] of one KV head of one sequence.
struct BackwardItem {
  int sequence, kv_head, first;
};

struct BackwardParams {
  Heads q, k, v, grad_out;  // of the kernel's type; q and k are turned, if they turn
  // For each row, [kv_heads][query tokens x group]: lse / ln 2 and delta, the sum of grad_out * out
  // less the gradient of lse.
  const float2* softmax;
  int64_t all_rows;  // query tokens x group
  const BackwardSequence* sequences;
  const BackwardItem* items;  // one a block
  int dim, width;  // channels; a multiple of 8 of them is there to read, the rest being zeros
  int group, kv_heads;
  int left, right;  // keys before and after a query's own
  float scale;
  // Gradients turn back; inv_freq is null without a rotation.
  const float *times_q, *times_k, *inv_freq;
  int half;
  bool interleaved;
  Heads grad_q, grad_k, grad_v;
  bool wide;  // their rows take 16 bytes at a time
};

AFNEXT_DEVICE int smaller(int a, int b) { return a < b ? a : b; }

// [low, high), empty where low >= high.
struct Interval {
  int low, high;
};

// The mask: each row sees one run of keys, each key is seen by one run of rows. Both bounds never
// fall from one to the next, so that a tile's trip count comes from its first and its last.
struct Band {
  int queries, keys, left, right, group;

  __host__ AFNEXT_DEVICE Band(const BackwardSequence& s, const BackwardParams& p)
      : queries(s.queries), keys(s.seen), left(p.left), right(p.right), group(p.group) {}

  __host__ AFNEXT_DEVICE int rows() const { return queries * group; }
  __host__ AFNEXT_DEVICE Interval keys_of(int row) const {
    const int64_t own = int64_t{row / group} + keys - queries;
    return {within(own - left, keys), within(own + right + 1, keys)};
  }
  __host__ AFNEXT_DEVICE Interval rows_of(int key) const {
    const int64_t own = int64_t{key} - keys + queries;
    return {within((own - right) * group, rows()), within((own + left + 1) * group, rows())};
  }

 private:
  __host__ AFNEXT_DEVICE static int within(int64_t at, int end) {
    return at < 0 ? 0 : at > end ? end : static_cast<int>(at);
  }
};

AFNEXT_DEVICE int64_t offset(const Heads& t, int64_t token, int head) {
  return token * t.token + head * t.head;
}
// Where a sequence's row or key lies among [tokens, heads, ..].
struct KeyPlace {
  int first, kv_head;
  AFNEXT_DEVICE int64_t token(int key) const { return first + key; }
  AFNEXT_DEVICE int64_t operator()(const Heads& t, int key) const {
    return offset(t, first + key, kv_head);
  }
};
struct RowPlace {
  int first, first_head, group;
  AFNEXT_DEVICE int64_t token(int row) const { return first + row / group; }
  AFNEXT_DEVICE int64_t operator()(const Heads& t, int row) const {
    return offset(t, first + row / group, first_head + row % group);
  }
};

// A block's work, whichever side it keeps.
struct BackwardWork {
  BackwardSequence sequence;
  Band band;
  int kv_head, first;
  KeyPlace keys;
  RowPlace rows;
  const float2* softmax;  // of the sequence's rows

  AFNEXT_DEVICE BackwardWork(const BackwardParams& p, const BackwardItem& item)
      : sequence(p.sequences[item.sequence]),
        band(sequence, p),
        kv_head(item.kv_head),
        first(item.first),
        keys{sequence.first_key, kv_head},
        rows{sequence.first_query, kv_head * p.group, p.group},
        softmax(p.softmax + kv_head * p.all_rows + int64_t{sequence.first_query} * p.group) {}
};

// Keeps keys: x = k, y = v, while rows stream past: u = q, w = grad_out.
struct KeySide {
  static constexpr bool kKeys = true;

  AFNEXT_DEVICE static const Heads& x(const BackwardParams& p) { return p.k; }
  AFNEXT_DEVICE static const Heads& y(const BackwardParams& p) { return p.v; }
  AFNEXT_DEVICE static const Heads& u(const BackwardParams& p) { return p.q; }
  AFNEXT_DEVICE static const Heads& w(const BackwardParams& p) { return p.grad_out; }
  AFNEXT_DEVICE static const KeyPlace& kept(const BackwardWork& work) { return work.keys; }
  AFNEXT_DEVICE static const RowPlace& streamed(const BackwardWork& work) { return work.rows; }
  // How many have gradients, and how many of these meet anything.
  AFNEXT_DEVICE static int count(const BackwardWork& work) { return work.sequence.keys; }
  AFNEXT_DEVICE static int meeting(const BackwardWork& work) { return work.band.keys; }
  AFNEXT_DEVICE static const Heads& grad_x(const BackwardParams& p) { return p.grad_k; }
  AFNEXT_DEVICE static const float* times(const BackwardParams& p) { return p.times_k; }
  __host__ AFNEXT_DEVICE static Interval visible(const Band& band, int key) {
    return band.rows_of(key);
  }
};

// Keeps rows: x = q, y = grad_out, while keys stream past: u = k, w = v.
struct RowSide {
  static constexpr bool kKeys = false;

  AFNEXT_DEVICE static const Heads& x(const BackwardParams& p) { return p.q; }
  AFNEXT_DEVICE static const Heads& y(const BackwardParams& p) { return p.grad_out; }
  AFNEXT_DEVICE static const Heads& u(const BackwardParams& p) { return p.k; }
  AFNEXT_DEVICE static const Heads& w(const BackwardParams& p) { return p.v; }
  AFNEXT_DEVICE static const RowPlace& kept(const BackwardWork& work) { return work.rows; }
  AFNEXT_DEVICE static const KeyPlace& streamed(const BackwardWork& work) { return work.keys; }
  AFNEXT_DEVICE static int count(const BackwardWork& work) { return work.band.rows(); }
  AFNEXT_DEVICE static int meeting(const BackwardWork& work) { return work.band.rows(); }
  AFNEXT_DEVICE static const Heads& grad_x(const BackwardParams& p) { return p.grad_q; }
  AFNEXT_DEVICE static const float* times(const BackwardParams& p) { return p.times_q; }
  __host__ AFNEXT_DEVICE static Interval visible(const Band& band, int row) {
    return band.keys_of(row);
  }
};

// What a pass adds up, of the gradients of x and of y.
enum class Sums { x, y, both };

}  // namespace afnext::cuda
