// Attention by mma.sync, for sm_80 and newer: the algorithm of FlashAttention-2 (arXiv 2307.08691).
//
// A block keeps 128 rows (64 where the head dim is over 128) of one KV head, tiles of 64 keys pass
// through shared memory: values come while scores are made, the next keys while values are added.
// Each of four warps owns 32 rows: with 16, every key that ldmatrix brings would serve half as many
// products, and shared memory (128 bytes a clock) would be the limit and not the tensor cores
// (1,024 products a clock on an A100):
//
//   head dim 128, a tile, all warps: 2 x 128 x 64 x 128 products = 2,048 clocks; read from shared
//   memory 4 x (16 K of k + 16 K of v + 8 K of q) = 1,280 clocks, so that 16 rows a warp would be
//   2,304.
//
//   per key and row 4 D FLOPs; device memory: q and out once, k and v once per 128 rows
//   shared memory, D = 128: q 32 KB, a tile of k and one of v 32 KB: 64 KB, two blocks an A100's or
//   H100's multiprocessor, one an Ada's; registers: 128 sums, 64 scores and operands in flight,
//   255 a thread, the most of which two blocks of 128 threads have room for
//
//   other head dims: rows x keys of a tile, registers, shared memory (blocks a multiprocessor: two,
//   three at 32, and one where it has not the shared memory)
//    32    128 x 64   153   16 KB         192    64 x 64   202   72 KB
//    64    128 x 64   210   32 KB         256    64 x 64   235   96 KB, of 99 that sm_120 has
//    96    128 x 64   239   48 KB         over 128, sums of 32 rows a warp would be 192 and 256
//
// Two warps a scheduler cannot cover every wait of the other, so a warp waits for as little as it
// can: addresses stay in registers, fragments are read one ahead, and no lane asks others for the
// largest score. On an H200 tiles of 64 keys do 396 TFLOP/s over 8,192 causal tokens of 28 heads of
// 128 on 4 (tensor cores busy for 62% of the time), tiles of 32 in two stages 366, 16 rows a warp
// with q in registers and three blocks 354; scores of the next tile beside a softmax cost registers
// and do 325.
//
// Scores never leave registers: the accumulators of q k^T are, packed in pairs, the left operand of
// p v. q is turned in shared memory, once; k was turned beforehand.
#pragma once

#include "cuda/arch/copy.h"
#include "cuda/arch/matrix.h"
#include "cuda/arch/warp.h"
#include "cuda/attention_tiles.h"

namespace afnext::cuda {

// What a thread keeps of its rows: of each strip rows lane / 4 and 8 further, of each 8 columns the
// two from 2 (lane % 4) on, as the accumulators of mma.sync lie.
template <int kDim>
struct AttentionRows {
  static constexpr int kStrips = AttentionShape<kDim>::kStrips;
  float sums[kStrips][kDim / 8][4] = {};
  float base[kStrips][2],
      total[kStrips][2];  // weights are 2 ** (score - base); this thread's share
};
template <int kDim>
struct AttentionScores {
  float at[AttentionShape<kDim>::kStrips][AttentionShape<kDim>::kKeys / 8][4] = {};
};

// Where a lane's first pieces lie that ldmatrix brings: its warp's rows of q, and all keys.
template <typename T, int kDim>
struct AttentionPlaces {
  arch::SharedAddress q, k, v;

  AFNEXT_DEVICE explicit AttentionPlaces(AttentionShared<T, kDim>& shared)
      : AttentionPlaces(shared, static_cast<int>(threadIdx.x) / arch::kWarp,
                        static_cast<int>(threadIdx.x) % arch::kWarp) {}

 private:
  AFNEXT_DEVICE AttentionPlaces(AttentionShared<T, kDim>& shared, int warp, int lane)
      : q(arch::opaque(arch::SharedAddress(
            shared.q.at(warp * AttentionShape<kDim>::kWarpRows + lane % 16, lane / 16)))),
        k(arch::opaque(arch::SharedAddress(shared.k.at(lane / 16 * 8 + lane % 8, lane / 8 % 2)))),
        v(arch::opaque(arch::SharedAddress(shared.v.at(lane % 16, lane / 16)))) {}
};

// scores += q k^T of a warp's rows and a tile's keys. What is next is read while products of what
// has come are made.
template <typename T, int kDim>
AFNEXT_DEVICE void multiply_keys(const AttentionPlaces<T, kDim>& places,
                                 AttentionScores<kDim>& scores) {
  using Shape = AttentionShape<kDim>;
  using Shared = AttentionShared<T, kDim>;
  constexpr int kSteps = kDim / 16, kPairs = Shape::kKeys / 16, kSixteen = 16 * kDim * sizeof(T);
  uint32_t q[2][Shape::kStrips][4], k[2][4];
  const auto read_q = [&](int step) {
#pragma unroll
    for (int strip = 0; strip < Shape::kStrips; ++strip) {
      arch::ldmatrix(q[step % 2][strip],
                     decltype(Shared::q)::further(places.q, 2 * step) + strip * kSixteen);
    }
  };
  const auto read_k = [&](int step, int pair) {  // two times 8 keys, of each two times 8 channels
    arch::ldmatrix(k[pair % 2], decltype(Shared::k)::further(places.k, 2 * step) + pair * kSixteen);
  };
  read_q(0);
  read_k(0, 0);
#pragma unroll(kDim > 128 ? 4 : kSteps)
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      if (pair + 1 < kPairs) {
        read_k(step, pair + 1);
      } else if (step + 1 < kSteps) {
        read_k(step + 1, 0);
      }
      if (pair == 0 && step + 1 < kSteps) read_q(step + 1);
      const uint32_t (&both)[4] = k[pair % 2];
      const uint32_t low[2] = {both[0], both[1]}, high[2] = {both[2], both[3]};
#pragma unroll
      for (int strip = 0; strip < Shape::kStrips; ++strip) {
        arch::mma_sync(scores.at[strip][2 * pair], q[step % 2][strip], low, T{});
        arch::mma_sync(scores.at[strip][2 * pair + 1], q[step % 2][strip], high, T{});
      }
    }
  }
}

// Minus infinity where keys of the tile from token `first` on lie before those that a row of the
// warp sees, or beyond them.
template <int kDim, bool kBeyond>
AFNEXT_DEVICE void mask_scores(const AttentionParams& p, int first, AttentionScores<kDim>& scores) {
  using Shape = AttentionShape<kDim>;
  // Made again: the loop has no registers for it.
  const AttentionItem item = item_of(p, arch::opaque(static_cast<int>(blockIdx.x)));
  const Band& band = item.sequence.band;
  const int thread = arch::opaque(static_cast<int>(threadIdx.x)), lane = thread % arch::kWarp;
  const int first_row = item.first_row + thread / arch::kWarp * Shape::kWarpRows + lane / 4;
  const int own_key = first - item.sequence.first_key + 2 * (lane % 4);
#pragma unroll
  for (int strip = 0; strip < Shape::kStrips; ++strip) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int query = (first_row + 16 * strip + 8 * side) / p.group;
      const int bound = (kBeyond ? band.end(query) : band.first(query)) - own_key;
#pragma unroll
      for (int i = 0; i < Shape::kKeys / 8; ++i) {
#pragma unroll
        for (int column = 0; column < 2; ++column) {
          if ((8 * i + column >= bound) == kBeyond) {
            scores.at[strip][i][2 * side + column] = -INFINITY;
          }
        }
      }
    }
  }
}

// Of a row that has seen no key: any score is far above.
constexpr float kNoBase = -0x1p126f;
// How far a score may lie above its row's base, in powers of 2: weights stay below 256.
constexpr float kMostAboveBase = 8;

// A thread's largest score of a row.
template <int kDim>
AFNEXT_DEVICE float largest(const AttentionScores<kDim>& scores, int strip, int side) {
  const auto& first = scores.at[strip][0];
  float even = first[2 * side], odd = first[2 * side + 1];  // two chains: half the time
#pragma unroll
  for (int i = 1; i < AttentionShape<kDim>::kKeys / 8; ++i) {
    even = fmaxf(even, scores.at[strip][i][2 * side]);
    odd = fmaxf(odd, scores.at[strip][i][2 * side + 1]);
  }
  return fmaxf(even, odd);
}

// The rows' bases become the largest scores so far, and what was summed up is worth less.
template <int kDim>
AFNEXT_DEVICE void raise_bases(const AttentionParams& p, const AttentionScores<kDim>& scores,
                               AttentionRows<kDim>& rows) {
#pragma unroll
  for (int strip = 0; strip < AttentionShape<kDim>::kStrips; ++strip) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const float before = rows.base[strip][side];
      const float max = arch::max_lanes<4>(largest(scores, strip, side));
      const float base = fmaxf(before, p.scale_log2 * max);
      const float shrink = arch::exp2_approx(before - base);
      rows.base[strip][side] = base;
      rows.total[strip][side] *= shrink;
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) {
        rows.sums[strip][i][2 * side] *= shrink;
        rows.sums[strip][i][2 * side + 1] *= shrink;
      }
    }
  }
}

// Turns scores into weights 2 ** (score - base). A base need not be the largest score: it is raised
// where weights would become large, which is rare after a row's first tile, and until then lanes
// need not ask each other.
template <int kDim>
AFNEXT_DEVICE void take_softmax(const AttentionParams& p, AttentionRows<kDim>& rows,
                                AttentionScores<kDim>& scores) {
  using Shape = AttentionShape<kDim>;
  float above = -INFINITY;
#pragma unroll
  for (int strip = 0; strip < Shape::kStrips; ++strip) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const float max = largest(scores, strip, side);
      above = fmaxf(above, fmaf(max, p.scale_log2, -rows.base[strip][side]));
    }
  }
  if (__any_sync(arch::kAllLanes, above > kMostAboveBase)) raise_bases(p, scores, rows);
#pragma unroll
  for (int strip = 0; strip < Shape::kStrips; ++strip) {
#pragma unroll
    for (int i = 0; i < Shape::kKeys / 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float& score = scores.at[strip][i][j];
        score = arch::exp2_approx(fmaf(score, p.scale_log2, -rows.base[strip][j / 2]));
        rows.total[strip][j / 2] += score;
      }
    }
  }
}

// sums += weights v.
template <typename T, int kDim>
AFNEXT_DEVICE void add_values(const AttentionPlaces<T, kDim>& places,
                              const AttentionScores<kDim>& weights, AttentionRows<kDim>& rows) {
  using Shape = AttentionShape<kDim>;
  using Shared = AttentionShared<T, kDim>;
  constexpr int kSteps = Shape::kKeys / 16, kPairs = kDim / 16, kSixteen = 16 * kDim * sizeof(T);
  uint32_t p[Shape::kStrips][4], v[2][4];
  const auto read_v = [&](int step, int pair) {  // two times 8 channels, of each two times 8 keys
    arch::ldmatrix_transposed(v[pair % 2],
                              decltype(Shared::v)::further(places.v, 2 * pair) + step * kSixteen);
  };
  read_v(0, 0);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int strip = 0; strip < Shape::kStrips; ++strip) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float (&w)[4] = weights.at[strip][2 * step + i / 2];
        p[strip][i] = arch::pack(w[2 * (i % 2)], w[2 * (i % 2) + 1], T{});
      }
    }
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      if (pair + 1 < kPairs) {
        read_v(step, pair + 1);
      } else if (step + 1 < kSteps) {
        read_v(step + 1, 0);
      }
      const uint32_t (&both)[4] = v[pair % 2];
      const uint32_t low[2] = {both[0], both[1]}, high[2] = {both[2], both[3]};
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
                              const AttentionRows<kDim>& rows) {
  using Shape = AttentionShape<kDim>;
  const AttentionItem item = item_of(p, arch::opaque(static_cast<int>(blockIdx.x)));
  const int lane = static_cast<int>(threadIdx.x) % arch::kWarp;
  const int first_row = static_cast<int>(threadIdx.x) / arch::kWarp * Shape::kWarpRows;
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
        p.lse[int64_t{head} * p.query_tokens + token] =
            total == 0.0f ? -INFINITY : (rows.base[strip][side] + log2f(total)) * kLn2;
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
  for (int i = lane; i < Shape::kWarpRows * kUnits; i += arch::kWarp) {
    const int in_block = first_row + i / kUnits, unit = i % kUnits;
    const int row = item.first_row + in_block;
    if (row >= all_rows || 8 * unit >= p.dim) continue;
    const int64_t token = item.sequence.first_query + row / p.group;
    const int head = item.kv_head * p.group + row % p.group;
    T* out = static_cast<T*>(p.out) + (token * heads + head) * p.dim + 8 * unit;
    const T* from = shared.q.at(in_block, unit);
    if (p.wide_out) {
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
  // Keys by their tokens: those that any row sees, and those that all see.
  const int first_key = item.sequence.first_key, kv_head = item.kv_head;
  const int begin = first_key + band.first(first_query) / Shape::kKeys * Shape::kKeys;
  const int end = first_key + band.end(last_query);
  const int all_begin = first_key + band.first(last_query);
  const int all_end = first_key + band.end(first_query);
  AttentionRows<kDim> rows;
#pragma unroll
  for (int strip = 0; strip < Shape::kStrips; ++strip) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      rows.base[strip][side] = kNoBase;
      rows.total[strip][side] = 0;
    }
  }
  const KeyLoader<T, kDim> k(shared.k, p.k, kv_head, p.dim), v(shared.v, p.v, kv_head, p.dim);
  const AttentionPlaces<T, kDim> places(shared);
  if (begin < end) {
    if (p.wide_q) load_rows(shared.q, p, item);
    arch::cp_async_commit_group();
    k.load(begin, end - begin);
    arch::cp_async_commit_group();
    if (p.wide_q) {
      arch::cp_async_wait_group<1>();
      __syncwarp();
      if (p.inv_freq != nullptr) turn_loaded_rows(shared.q, p, item);
    } else {
      gather_rows(shared.q, p, item);
    }
  }
#pragma unroll 1
  for (int key = begin; key < end; key += Shape::kKeys) {
    arch::cp_async_wait_group<0>();
    __syncthreads();  // these keys have come for all, and nobody reads the values before
    v.load(key, end - key);
    arch::cp_async_commit_group();
    AttentionScores<kDim> scores;
    multiply_keys(places, scores);
    if (key < all_begin) mask_scores<kDim, false>(p, key, scores);
    if (key + Shape::kKeys > all_end) mask_scores<kDim, true>(p, key, scores);
    arch::cp_async_wait_group<0>();
    __syncthreads();  // these values have come for all, and nobody reads the keys any more
    const int next = key + Shape::kKeys;
    if (next < end) k.load(next, end - next);
    arch::cp_async_commit_group();
    take_softmax<kDim>(p, rows, scores);
    add_values(places, scores, rows);
  }
  write_rows<T, kDim>(shared, p, rows);
}

}  // namespace afnext::cuda
