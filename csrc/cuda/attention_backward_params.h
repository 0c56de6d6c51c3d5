// What the kernels of attention's backward are told, and the two sides that a pair of a row and a
// key can be seen from.
//
// With P = exp(scale q k - lse) and dS = P (grad_out v - delta), over the rows of
// attention_params.h,
//
//   grad_k = scale dS^T q,  grad_v = P^T grad_out     sums over rows
//   grad_q = scale dS k                               sums over keys
//
// Both are one algorithm: a block keeps a tile of one side (x, y), the other side (u, w) streams
// past, P and dS come of x u and y w, and the sums over what streamed past stay in registers.
#pragma once

#include "cuda/attention_params.h"

namespace afnext::cuda {

// Keys or rows [first, first + the block's) of one KV head of one sequence.
struct BackwardItem {
  int sequence, kv_head, first;
};

struct BackwardParams {
  Heads q, k, v, grad_out;  // of the kernel's type; q and k are turned already, if they turn
  // For each row, [kv_heads][query tokens x group]: lse (for tensor cores lse / ln 2) and
  // delta, the sum of grad_out * out less the gradient of lse.
  const float2* softmax;
  int64_t all_rows;  // query tokens x group
  const PackedSequence* sequences;
  const BackwardItem* items;  // one a block
  int dim;  // channels; a multiple of 8 of them is there to read, the rest being zeros
  int group, kv_heads;
  float scale;
  // Gradients turn back: inv_freq is null without a rotation.
  const float *times_q, *times_k, *inv_freq;
  int half;
  bool interleaved;
  void *grad_q, *grad_k, *grad_v;  // [tokens, heads, dim]
  bool wide;                       // their rows take 16 bytes at a time
};

AFNEXT_DEVICE int smaller(int a, int b) { return a < b ? a : b; }

// [low, high), empty where low >= high.
struct Interval {
  int low, high;
};

// What of the other side a row, or a key, meets. Both bounds never fall from one to the next, so
// that a tile's trip count comes from its first and its last.
struct Meetings {
  Band band;
  int group;

  __host__ AFNEXT_DEVICE int rows() const { return band.queries * group; }
  __host__ AFNEXT_DEVICE Interval keys_of(int row) const {
    return {band.first(row / group), band.end(row / group)};
  }
  // The rows whose keys_of() hold the key.
  __host__ AFNEXT_DEVICE Interval rows_of(int key) const {
    const int64_t own = int64_t{key} - band.keys + band.queries;
    return {first_row(own - band.right), first_row(own + band.left + 1)};
  }

 private:
  __host__ AFNEXT_DEVICE int first_row(int64_t query) const {
    return query < 0 ? 0 : query > band.queries ? rows() : static_cast<int>(query) * group;
  }
};

// Where a sequence's key or row lies among [tokens, heads].
struct Place {
  int token, head;
};
struct KeyPlaces {
  int first, kv_head;
  AFNEXT_DEVICE Place operator()(int key) const { return {first + key, kv_head}; }
};
struct RowPlaces {
  int first, first_head, group;
  AFNEXT_DEVICE Place operator()(int row) const {
    return {first + row / group, first_head + row % group};
  }
};

// A block's work, whichever side it keeps.
struct BackwardWork {
  int keys, first;
  Meetings meetings;
  KeyPlaces key_places;
  RowPlaces row_places;
  const float2* softmax;  // of the sequence's rows

  AFNEXT_DEVICE BackwardWork(const BackwardParams& p, const BackwardItem& item)
      : BackwardWork(p, item, p.sequences[item.sequence]) {}

 private:
  AFNEXT_DEVICE BackwardWork(const BackwardParams& p, const BackwardItem& item,
                             const PackedSequence& s)
      : keys(s.keys),
        first(item.first),
        meetings{s.band, p.group},
        key_places{s.first_key, item.kv_head},
        row_places{s.first_query, item.kv_head * p.group, p.group},
        softmax(p.softmax + item.kv_head * p.all_rows + int64_t{s.first_query} * p.group) {}
};

// Keeps keys: x = k, y = v, while rows stream past: u = q, w = grad_out.
struct KeySide {
  static constexpr bool kKeys = true;

  AFNEXT_DEVICE static const Heads& x(const BackwardParams& p) { return p.k; }
  AFNEXT_DEVICE static const Heads& y(const BackwardParams& p) { return p.v; }
  AFNEXT_DEVICE static const Heads& u(const BackwardParams& p) { return p.q; }
  AFNEXT_DEVICE static const Heads& w(const BackwardParams& p) { return p.grad_out; }
  AFNEXT_DEVICE static const KeyPlaces& kept(const BackwardWork& work) { return work.key_places; }
  AFNEXT_DEVICE static const RowPlaces& streamed(const BackwardWork& work) {
    return work.row_places;
  }
  AFNEXT_DEVICE static void* grad_x(const BackwardParams& p) { return p.grad_k; }
  AFNEXT_DEVICE static const float* times(const BackwardParams& p) { return p.times_k; }
  AFNEXT_DEVICE static int heads(const BackwardParams& p) { return p.kv_heads; }
  // How many have gradients, how many of these meet anything, and what one meets.
  __host__ AFNEXT_DEVICE static int count(const Meetings&, int keys) { return keys; }
  __host__ AFNEXT_DEVICE static int meeting(const Meetings& all) { return all.band.keys; }
  __host__ AFNEXT_DEVICE static Interval met(const Meetings& all, int key) {
    return all.rows_of(key);
  }
};

// Keeps rows: x = q, y = grad_out, while keys stream past: u = k, w = v.
struct RowSide {
  static constexpr bool kKeys = false;

  AFNEXT_DEVICE static const Heads& x(const BackwardParams& p) { return p.q; }
  AFNEXT_DEVICE static const Heads& y(const BackwardParams& p) { return p.grad_out; }
  AFNEXT_DEVICE static const Heads& u(const BackwardParams& p) { return p.k; }
  AFNEXT_DEVICE static const Heads& w(const BackwardParams& p) { return p.v; }
  AFNEXT_DEVICE static const RowPlaces& kept(const BackwardWork& work) { return work.row_places; }
  AFNEXT_DEVICE static const KeyPlaces& streamed(const BackwardWork& work) {
    return work.key_places;
  }
  AFNEXT_DEVICE static void* grad_x(const BackwardParams& p) { return p.grad_q; }
  AFNEXT_DEVICE static const float* times(const BackwardParams& p) { return p.times_q; }
  AFNEXT_DEVICE static int heads(const BackwardParams& p) { return p.kv_heads * p.group; }
  __host__ AFNEXT_DEVICE static int count(const Meetings& all, int) { return all.rows(); }
  __host__ AFNEXT_DEVICE static int meeting(const Meetings& all) { return all.rows(); }
  __host__ AFNEXT_DEVICE static Interval met(const Meetings& all, int row) {
    return all.keys_of(row);
  }
};

// What a pass adds up: the gradients of x, of y, or of both.
enum class Sums { x, y, both };

}  // namespace afnext::cuda
