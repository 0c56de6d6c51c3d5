// Attention by mma.sync, for sm_80 and newer: the algorithm of FlashAttention-2 (arXiv 2307.08691).
//
// A block keeps 128 rows (64 where the head dim is over 128) of one KV head, tiles of 32 keys pass
// through two stages of shared memory. Each of four warps owns 32 rows: with 16, every key that
// ldmatrix brings would serve half as many products, and shared memory (128 bytes a clock) would be
// the limit and not the tensor cores (1,024 products a clock on an A100):
//
//   head dim 128, a tile, all warps: 2 x 128 x 32 x 128 products = 1,024 clocks; read from shared
//   memory 4 x (8 K of k + 8 K of v + 8 K of q) = 768 clocks, so that 16 rows a warp would be
//   1,280.
//
//   per key and row 4 D FLOPs; device memory: q and out once, k and v once per 128 rows
//   shared memory, D = 128: q 32 KB, two stages of k and v 32 KB: 64 KB, two blocks an A100's or
//   H100's multiprocessor, one an Ada's; registers: 128 sums, 32 scores and operands in flight,
//   254 a thread, the most of which two blocks of 128 threads have room for
//
// Scores never leave registers: the accumulators of q k^T are, packed in pairs, the left operand of
// p v. q is turned as it is put into shared memory, once; k was turned beforehand.
#pragma once

#include "cuda/arch/copy.h"
#include "cuda/arch/matrix.h"
#include "cuda/arch/warp.h"
#include "cuda/attention_params.h"
#include "cuda/rotation.h"
#include "cuda/swizzled_tile.h"

namespace afnext::cuda {

template <int kDim>
struct AttentionShape {
  static constexpr int kWarps = 4, kThreads = kWarps * arch::kWarp;
  static constexpr int kStrips = kDim <= 128 ? 2 : 1;  // of 16 rows, a warp's
  static constexpr int kRows = kWarps * kStrips * 16;  // a block's
  static constexpr int kKeys = 32;                     // a tile's
  static constexpr int kBlocks = kDim <= 128 ? 2 : 1;  // a multiprocessor's
};

template <typename T, int kDim>
struct AttentionShared {
  using Shape = AttentionShape<kDim>;
  SwizzledTile<T, Shape::kRows, kDim> q;  // in the end the results
  SwizzledTile<T, Shape::kKeys, kDim> k[2], v[2];
};

// What a thread keeps of its rows: of each strip rows lane / 4 and 8 further, of each 8 columns the
// two from 2 (lane % 4) on, as the accumulators of mma.sync lie.
template <int kDim>
struct AttentionRows {
  static constexpr int kStrips = AttentionShape<kDim>::kStrips;
  float sums[kStrips][kDim / 8][4] = {};
  float max[kStrips][2], total[kStrips][2];  // of scores in units of log 2; this thread's share
};

// `count` keys from `first` on; those beyond and channels past the head dim become zeros.
template <typename T, int kRows, int kDim>
AFNEXT_DEVICE void load_keys(SwizzledTile<T, kRows, kDim>& tile, const Heads& from, int64_t first,
                             int kv_head, int count, int dim) {
  constexpr int kThreads = AttentionShape<kDim>::kThreads, kUnits = kDim / 8;
  const T* base = static_cast<const T*>(from.data);
#pragma unroll 1  // addresses of a whole tile would take the sums' registers
  for (int turn = 0; turn < kRows * kUnits / kThreads; ++turn) {
    const int i = turn * kThreads + static_cast<int>(threadIdx.x);
    const int row = i / kUnits, unit = i % kUnits;
    const bool real = row < count && 8 * unit < dim;
    const T* source = real ? base + from.at(first + row, kv_head) + 8 * unit : base;
    arch::cp_async<16>(tile.at(row, unit), source, real ? 16 : 0);
  }
}

// The block's rows of q as they are.
template <typename T, int kRows, int kDim>
AFNEXT_DEVICE void load_rows(SwizzledTile<T, kRows, kDim>& tile, const AttentionParams& p,
                             const AttentionItem& item) {
  constexpr int kThreads = AttentionShape<kDim>::kThreads, kUnits = kDim / 8;
  const T* base = static_cast<const T*>(p.q.data);
  const int rows = item.sequence.band.queries * p.group;
#pragma unroll 1
  for (int turn = 0; turn < kRows * kUnits / kThreads; ++turn) {
    const int i = turn * kThreads + static_cast<int>(threadIdx.x);
    const int row = item.first_row + i / kUnits, unit = i % kUnits;
    const bool real = row < rows && 8 * unit < p.dim;
    const int64_t at =
        p.q.at(item.sequence.first_query + row / p.group, item.kv_head * p.group + row % p.group);
    arch::cp_async<16>(tile.at(i / kUnits, unit), real ? base + at + 8 * unit : base,
                       real ? 16 : 0);
  }
}

// The block's rows of q, turned by their times and negated where scores are (a negative scale).
template <typename T, int kRows, int kDim>
AFNEXT_DEVICE void turn_rows(SwizzledTile<T, kRows, kDim>& tile, const AttentionParams& p,
                             const AttentionItem& item) {
  constexpr int kThreads = AttentionShape<kDim>::kThreads, kPairs = kDim / 2;
  const T* base = static_cast<const T*>(p.q.data);
  const int rows = item.sequence.band.queries * p.group;
  const int half = p.inv_freq != nullptr ? p.half : 0;
  const float sign = p.scale < 0 ? -1.0f : 1.0f;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kPairs; i += kThreads) {
    const int row = item.first_row + i / kPairs, pair = i % kPairs;
    const RotatedPair at(pair, half, p.interleaved);
    const int64_t token = item.sequence.first_query + row / p.group;
    float x = 0, y = 0;
    if (row < rows) {
      const T* from = base + p.q.at(token, item.kv_head * p.group + row % p.group);
      if (at.first < p.dim) x = sign * arch::to_float(from[at.first]);
      if (at.second < p.dim) y = sign * arch::to_float(from[at.second]);
      if (pair < half) turn(sincos_of(p.times_q[token], p.inv_freq[pair]), &x, &y);
    }
    tile.element(i / kPairs, at.first) = arch::rounded<T>(x);
    tile.element(i / kPairs, at.second) = arch::rounded<T>(y);
  }
}

// scores = q k^T of a warp's rows and a tile's keys.
template <typename T, int kDim>
AFNEXT_DEVICE void multiply_keys(
    AttentionShared<T, kDim>& shared, int stage,
    float (&scores)[AttentionShape<kDim>::kStrips][AttentionShape<kDim>::kKeys / 8][4]) {
  using Shape = AttentionShape<kDim>;
  const int lane = static_cast<int>(threadIdx.x) % arch::kWarp;
  const int first_row = static_cast<int>(threadIdx.x) / arch::kWarp * 16 * Shape::kStrips;
#pragma unroll(kDim > 192 ? 4 : kDim / 16)  // at 256 registers run out
  for (int step = 0; step < kDim / 16; ++step) {
    uint32_t q[Shape::kStrips][4];
#pragma unroll
    for (int strip = 0; strip < Shape::kStrips; ++strip) {
      const int row = first_row + 16 * strip + lane % 16;
      arch::ldmatrix(q[strip], shared.q.at(row, 2 * step + lane / 16));
    }
#pragma unroll
    for (int pair = 0; pair < Shape::kKeys / 16; ++pair) {
      uint32_t k[4];  // two times 8 keys, of each two times 8 channels
      const int key = 16 * pair + lane / 16 * 8 + lane % 8;
      arch::ldmatrix(k, shared.k[stage].at(key, 2 * step + lane / 8 % 2));
      const uint32_t low[2] = {k[0], k[1]}, high[2] = {k[2], k[3]};
#pragma unroll
      for (int strip = 0; strip < Shape::kStrips; ++strip) {
        arch::mma_sync(scores[strip][2 * pair], q[strip], low, T{});
        arch::mma_sync(scores[strip][2 * pair + 1], q[strip], high, T{});
      }
    }
  }
}

// Minus infinity where a row of the warp does not see a key of the tile from `first_key` on.
template <int kDim>
AFNEXT_DEVICE void mask_scores(
    const AttentionParams& p, const AttentionItem& item, int first_key,
    float (&scores)[AttentionShape<kDim>::kStrips][AttentionShape<kDim>::kKeys / 8][4]) {
  using Shape = AttentionShape<kDim>;
  const int lane = static_cast<int>(threadIdx.x) % arch::kWarp;
  const int first_row = static_cast<int>(threadIdx.x) / arch::kWarp * 16 * Shape::kStrips;
#pragma unroll
  for (int strip = 0; strip < Shape::kStrips; ++strip) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int row = item.first_row + first_row + 16 * strip + 8 * side + lane / 4;
      const int begin = item.sequence.band.first(row / p.group) - first_key;
      const int end = item.sequence.band.end(row / p.group) - first_key;
#pragma unroll
      for (int i = 0; i < Shape::kKeys / 8; ++i) {
#pragma unroll
        for (int column = 0; column < 2; ++column) {
          const int key = 8 * i + 2 * (lane % 4) + column;
          if (key < begin || key >= end) scores[strip][i][2 * side + column] = -INFINITY;
        }
      }
    }
  }
}

// Turns scores into weights exp2(score - max) and what was summed up so far to the new maximum.
template <int kDim>
AFNEXT_DEVICE void take_softmax(
    float scale, AttentionRows<kDim>& rows,
    float (&scores)[AttentionShape<kDim>::kStrips][AttentionShape<kDim>::kKeys / 8][4]) {
  using Shape = AttentionShape<kDim>;
#pragma unroll
  for (int strip = 0; strip < Shape::kStrips; ++strip) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      float max = rows.max[strip][side];
      const float before = max;
#pragma unroll
      for (int i = 0; i < Shape::kKeys / 8; ++i) {
        max = fmaxf(max, scale * fmaxf(scores[strip][i][2 * side], scores[strip][i][2 * side + 1]));
      }
      max = arch::max_lanes<4>(max);
      rows.max[strip][side] = max;
      const float base = max == -INFINITY ? 0.0f : max;  // a row that has seen no key yet
      float total = 0;
#pragma unroll
      for (int i = 0; i < Shape::kKeys / 8; ++i) {
#pragma unroll
        for (int column = 0; column < 2; ++column) {
          float& score = scores[strip][i][2 * side + column];
          score = arch::exp2_approx(fmaf(score, scale, -base));
          total += score;
        }
      }
      const float shrink = arch::exp2_approx(before - base);
      rows.total[strip][side] = fmaf(rows.total[strip][side], shrink, total);
      if (__any_sync(arch::kAllLanes, shrink != 1.0f)) {  // rare once the largest score has come
#pragma unroll
        for (int i = 0; i < kDim / 8; ++i) {
          rows.sums[strip][i][2 * side] *= shrink;
          rows.sums[strip][i][2 * side + 1] *= shrink;
        }
      }
    }
  }
}

// sums += weights v.
template <typename T, int kDim>
AFNEXT_DEVICE void add_values(
    AttentionShared<T, kDim>& shared, int stage,
    const float (&weights)[AttentionShape<kDim>::kStrips][AttentionShape<kDim>::kKeys / 8][4],
    AttentionRows<kDim>& rows) {
  using Shape = AttentionShape<kDim>;
  const int lane = static_cast<int>(threadIdx.x) % arch::kWarp;
#pragma unroll
  for (int step = 0; step < Shape::kKeys / 16; ++step) {
    uint32_t p[Shape::kStrips][4];
#pragma unroll
    for (int strip = 0; strip < Shape::kStrips; ++strip) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float (&w)[4] = weights[strip][2 * step + i / 2];
        p[strip][i] = arch::pack(w[2 * (i % 2)], w[2 * (i % 2) + 1], T{});
      }
    }
#pragma unroll
    for (int pair = 0; pair < kDim / 16; ++pair) {
      uint32_t v[4];  // two times 8 channels, of each two times 8 keys
      arch::ldmatrix_transposed(v, shared.v[stage].at(16 * step + lane % 16, 2 * pair + lane / 16));
      const uint32_t low[2] = {v[0], v[1]}, high[2] = {v[2], v[3]};
#pragma unroll
      for (int strip = 0; strip < Shape::kStrips; ++strip) {
        arch::mma_sync(rows.sums[strip][2 * pair], p[strip], low, T{});
        arch::mma_sync(rows.sums[strip][2 * pair + 1], p[strip], high, T{});
      }
    }
  }
}

// Divides by the totals and writes the warp's rows, through its part of q's tile.
template <typename T, int kDim>
AFNEXT_DEVICE void write_rows(AttentionShared<T, kDim>& shared, const AttentionParams& p,
                              const AttentionItem& item, const AttentionRows<kDim>& rows) {
  using Shape = AttentionShape<kDim>;
  const int lane = static_cast<int>(threadIdx.x) % arch::kWarp;
  const int first_row = static_cast<int>(threadIdx.x) / arch::kWarp * 16 * Shape::kStrips;
  const int all_rows = item.sequence.band.queries * p.group;
  const int heads = p.group * p.kv_heads;
  __syncwarp();  // no lane reads q any more
#pragma unroll
  for (int strip = 0; strip < Shape::kStrips; ++strip) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const float total = arch::sum_lanes<4>(rows.total[strip][side]);
      const float factor = total == 0.0f ? 0.0f : 1.0f / total;
      const int in_block = first_row + 16 * strip + 8 * side + lane / 4;
      const int row = item.first_row + in_block;
      const int64_t token = item.sequence.first_query + row / p.group;
      const int head = item.kv_head * p.group + row % p.group;
      if (row < all_rows && lane % 4 == 0) {
        const float max = rows.max[strip][side];
        p.lse[int64_t{head} * p.query_tokens + token] =
            total == 0.0f ? -INFINITY : (max + log2f(total)) * kLn2;
      }
      float* wide = static_cast<float*>(p.out) + (token * heads + head) * p.dim;
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        const float a = factor * rows.sums[strip][i][2 * side];
        const float b = factor * rows.sums[strip][i][2 * side + 1];
        const int column = 8 * i + 2 * (lane % 4);
        if (p.out_is_float) {
          if (row < all_rows && column < p.dim) wide[column] = a;
          if (row < all_rows && column + 1 < p.dim) wide[column + 1] = b;
        } else {
          *reinterpret_cast<uint32_t*>(shared.q.at(in_block, i) + 2 * (lane % 4)) =
              arch::pack(a, b, T{});
        }
      }
    }
  }
  if (p.out_is_float) return;
  __syncwarp();
  constexpr int kUnits = kDim / 8;
#pragma unroll 1
  for (int i = lane; i < 16 * Shape::kStrips * kUnits; i += arch::kWarp) {
    const int in_block = first_row + i / kUnits, unit = i % kUnits;
    const int row = item.first_row + in_block;
    if (row >= all_rows || 8 * unit >= p.dim) continue;
    const int64_t token = item.sequence.first_query + row / p.group;
    const int head = item.kv_head * p.group + row % p.group;
    T* out = static_cast<T*>(p.out) + (token * heads + head) * p.dim + 8 * unit;
    const T* from = shared.q.at(in_block, unit);
    if (p.dim % 8 == 0) {
      *reinterpret_cast<uint4*>(out) = *reinterpret_cast<const uint4*>(from);
    } else {
      for (int c = 0; c < 8 && 8 * unit + c < p.dim; ++c) out[c] = from[c];
    }
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__(AttentionShape<kDim>::kThreads, AttentionShape<kDim>::kBlocks)
    attention_kernel(const AttentionParams p) {
  using Shape = AttentionShape<kDim>;
  auto& shared = arch::shared_memory<AttentionShared<T, kDim>>();
  const AttentionItem item = item_of(p, static_cast<int>(blockIdx.x));
  const Band& band = item.sequence.band;
  const int last_row = min(item.first_row + Shape::kRows, band.queries * p.group) - 1;
  const int first_query = item.first_row / p.group, last_query = last_row / p.group;
  const int begin = band.first(first_query) / Shape::kKeys * Shape::kKeys;
  const int end = band.end(last_query);
  const float scale = fmaxf(fabsf(p.scale), 1e-37f) * kLog2E;  // of a scale of 0 too
  AttentionRows<kDim> rows;
#pragma unroll
  for (int strip = 0; strip < Shape::kStrips; ++strip) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      rows.max[strip][side] = -INFINITY;
      rows.total[strip][side] = 0;
    }
  }
  const auto load = [&](int stage, int key) {
    const int64_t token = int64_t{item.sequence.first_key} + key;
    load_keys(shared.k[stage], p.k, token, item.kv_head, band.keys - key, p.dim);
    load_keys(shared.v[stage], p.v, token, item.kv_head, band.keys - key, p.dim);
  };
  if (begin < end) {
    load(0, begin);
    if (p.inv_freq != nullptr || !p.plain_q) {
      turn_rows(shared.q, p, item);
    } else {
      load_rows(shared.q, p, item);
    }
    arch::cp_async_commit_group();
  }
#pragma unroll 1
  for (int key = begin, stage = 0; key < end; key += Shape::kKeys, stage ^= 1) {
    arch::cp_async_wait_group<0>();
    __syncthreads();  // this tile has come for all, and nobody reads the one before it
    if (key + Shape::kKeys < end) load(stage ^ 1, key + Shape::kKeys);
    arch::cp_async_commit_group();
    float scores[Shape::kStrips][Shape::kKeys / 8][4] = {};
    multiply_keys<T, kDim>(shared, stage, scores);
    if (key < band.first(last_query) || key + Shape::kKeys > band.end(first_query)) {
      mask_scores<kDim>(p, item, key, scores);
    }
    take_softmax<kDim>(scale, rows, scores);
    add_values<T, kDim>(shared, stage, scores, rows);
  }
  write_rows<T, kDim>(shared, p, item, rows);
}

}  // namespace afnext::cuda
