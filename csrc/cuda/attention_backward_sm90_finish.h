// From sums of gradients in float32 to gradients: scaled, turned back, rounded once.
//
// Bytes: 4 D a row read, 2 D written; memory is the limit. A block takes a tile of 64 rows as
// products left it: lanes read 16 bytes each, neighbours of each other; by way of shared memory (34
// KB at D = 128, 18 KB at 64) they become rows. 43 to 56 registers: four blocks of 256 threads a
// multiprocessor.
#pragma once

#include "cuda/attention_backward_output.h"
#include "cuda/attention_backward_sm90_tiles.h"

namespace afnext::cuda::backward_sm90 {

constexpr int kFinishThreads = 256;

// Rows of a tile; 8 floats between them keep what lanes write of their fragments in different
// banks.
template <int kDim>
struct FinishTile {
  float at[kTileRows][kDim + 8];
};

// A token's phases: a lane has those of every 32nd pair.
template <int kDim>
class TokenTurn {
 public:
  AFNEXT_DEVICE void of(int token, const float* times, const BackwardParams& p) {
    if (token == token_) return;
    token_ = token;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (pair(i) < p.half) phases_[i] = sincos_of(times[token], p.inv_freq[pair(i)]);
    }
  }
  // Of the warp's row in shared memory. All lanes call it.
  AFNEXT_DEVICE void back(float* row, const BackwardParams& p) const {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (pair(i) >= p.half) break;
      const RotatedPair at(pair(i), p.half, p.interleaved);
      turn({-phases_[i].sin, phases_[i].cos}, row + at.first, row + at.second);
    }
  }

 private:
  static constexpr int kPairs = kDim / 2 / arch::kWarp;

  AFNEXT_DEVICE static int pair(int i) {
    return static_cast<int>(threadIdx.x) % arch::kWarp + i * arch::kWarp;
  }

  int token_ = -1;
  SinCos phases_[kPairs] = {};
};

// A tile's sums, or zeros if nobody added to it, to `count` rows of `out`.
template <typename T, int kDim, typename Places>
AFNEXT_DEVICE void finish_tile(const SumTile<kDim>& sums, bool any, float factor, int count,
                               int first, const Params& p, const Places& places, void* out,
                               int heads, const float* times) {
  auto& tile = arch::shared_memory<FinishTile<kDim>>();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % arch::kWarp;
  const int side = thread / kWarpgroup, own = thread % kWarpgroup;
  const int row = own / arch::kWarp * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    const int eight = 2 * i + side;
    float4 four{};
    if (any) four = sums.at[eight][own];
    float* to = &tile.at[row][8 * eight + 2 * (lane % 4)];
    *reinterpret_cast<float2*>(to) = {factor * four.x, factor * four.y};
    *reinterpret_cast<float2*>(to + 8 * (kDim + 8)) = {factor * four.z, factor * four.w};
  }
  __syncthreads();
  // Neighbouring rows are a token's heads, which turn alike.
  constexpr int kRows = kTileRows / (kFinishThreads / arch::kWarp);
  const int begin = thread / arch::kWarp * kRows, end = smaller(begin + kRows, count);
  TokenTurn<kDim> turn;
#pragma unroll 1
  for (int i = begin; i < end; ++i) {
    const Place place = places(first + i);
    if (times != nullptr) {
      turn.of(place.token, times, p.all);
      turn.back(tile.at[i], p.all);
      __syncwarp();
    }
    write_row(tile.at[i], static_cast<T*>(out), place, heads, p.all, true);
  }
}

// A block a tile: those of rows for all KV heads, then those of keys for grad_k, then for grad_v.
template <typename T, int kDim>
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(const Params p) {
  const int row_tiles = p.tiles * p.all.kv_heads;
  const int key_tiles = p.blocks * kConsumers * p.all.kv_heads;
  const int index = static_cast<int>(blockIdx.x);
  const bool of_rows = index < row_tiles;
  const int of_keys = index - row_tiles;
  const int side = of_rows ? 0 : of_keys / key_tiles;  // 0: grad_k, 1: grad_v
  const int at = of_rows ? index : of_keys % key_tiles;
  const int each = of_rows ? p.tiles : p.blocks * kConsumers;
  const int kv_head = at / each, tile = at % each;
  int low = 0, high = p.sequence_count;  // the last sequence that begins there or before
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    const Sequence& s = p.sequences[middle];
    ((of_rows ? s.first_tile : s.first_block * kConsumers) <= tile ? low : high) = middle;
  }
  const Sequence& sequence = p.sequences[low];
  const PackedSequence& packed = sequence.packed;
  const Meetings meetings{packed.band, p.all.group};
  if (of_rows) {
    const int tile_rows = p.tile_queries * p.all.group;
    const int first = (tile - sequence.first_tile) * tile_rows;
    const int count = smaller(tile_rows, meetings.rows() - first);
    const bool any = meetings.keys_of(first).low < meetings.keys_of(first + count - 1).high;
    const RowPlaces places{packed.first_query, kv_head * p.all.group, p.all.group};
    finish_tile<T, kDim>(static_cast<const SumTile<kDim>*>(p.grad_q)[at], any, p.all.scale, count,
                         first, p, places, p.all.grad_q, p.all.kv_heads * p.all.group,
                         p.all.times_q);
    return;
  }
  const int block = (tile - sequence.first_block * kConsumers) / kConsumers * kBlockKeys;
  const int first = (tile - sequence.first_block * kConsumers) * kGroupKeys;
  const int count = smaller(kGroupKeys, packed.keys - first);
  const int end = smaller(block + kBlockKeys, packed.band.keys);
  const bool any = block < end && meetings.rows_of(block).low < meetings.rows_of(end - 1).high;
  const KeyPlaces places{packed.first_key, kv_head};
  const void* sums = side == 0 ? p.grad_k : p.grad_v;
  finish_tile<T, kDim>(static_cast<const SumTile<kDim>*>(sums)[at], any,
                       side == 0 ? p.all.scale : 1.0f, count, first, p, places,
                       side == 0 ? p.all.grad_k : p.all.grad_v, p.all.kv_heads,
                       side == 0 ? p.all.times_k : nullptr);
}

}  // namespace afnext::cuda::backward_sm90
