// Paged attention on tensor cores: softmax(q k^T) v of one tile of query rows and one part of a
// request's keys, for one KV head.
//
// Bytes. Decode reads every key and value once, 4 D bytes a token and KV head in 16 bits, and does
// 4 D FLOPs with them for each of at most 16 rows: 16 FLOPs a byte, where an H100 has 295. So only
// the memory counts: stages of 32 KB (16 KB of bytes) fill 64 KB a block, all but one of them in
// flight, three blocks on an SM of sm_90 (145 registers a thread; 71 KB of 228), two on sm_80. That
// is 96 KB in flight on an SM, where 4.3 TB/s times 0.7 us ask for 23. Heads of a GQA group share
// a tile, so that a key is read once for all of them. What could come before memory is the number
// of instructions: KeyStream asks for 16 bytes with six, and a warp waits only for what it reads
// itself. A page costs one 4-byte read of the table a row, a tile ahead of it; a page may be as
// small as one token. On an H200 16 requests of 32,768 tokens are read at 95 % of what a copy
// moves, one of 45,000 at 65 %.
//
// A step with few tokens is latency: items, their rows and pages are found while the kernel before
// still runs (griddepcontrol), so that what is left is one trip to memory, two tiles and a join.
//
// Decode (kRowWarps = 1): 16 rows, and warps that take 16 keys of each tile, joined at the end.
// Prefill (kKeyWarps = 1): 64 rows, 16 a warp, that all see the same keys: each byte
// from memory serves 64 rows and each from shared memory 16, which is where its speed ends (128
// bytes a clock for 2,048 FLOPs a clock: the tensor cores of sm_80, half of those of sm_90). Its
// out rows and scores take 195 to 255 registers, two blocks an SM.
//
// int8 and e4m3 pages are half the bytes: they go to shared memory as they are, ldmatrix takes 16
// bits of them for an element, and they are widened in registers, three instructions an element.
// The key's scale multiplies the column of scores. The value's multiplies the probability, before
// it is rounded to bf16; in float16 such a product may underflow, and the scale goes to the value.
//
// A value that is NaN or infinite reaches all rows of the item that meets it, also those that a
// mask keeps from seeing its key.
#pragma once

#include "cuda/arch/griddepcontrol.h"
#include "cuda/paged_rows.h"

namespace afnext::cuda {

// Joins the warps that share rows and writes the item's result.
template <typename Tile>
AFNEXT_DEVICE void write_rows(const PagedAttentionParams& p, const PagedItem& item, int head,
                              const PagedRows& rows, const typename Tile::Shared& shared) {
  using T = typename Tile::T;
  constexpr int kVector = 4, kVectors = Tile::kDim / kVector;
  for (int i = threadIdx.x; i < rows.count * kVectors; i += Tile::kThreads) {
    const int row = i / kVectors, channel = i % kVectors * kVector;
    if (channel >= p.pages.dim) continue;
    float top = -INFINITY, sum = 0.0f, values[kVector] = {};
#pragma unroll
    for (int w = 0; w < Tile::kKeyWarps; ++w) top = fmaxf(top, shared.top[w][row]);
    const float footing = top == -INFINITY ? 0.0f : top;
#pragma unroll
    for (int w = 0; w < Tile::kKeyWarps; ++w) {
      const float weight = arch::exp2_approx(shared.top[w][row] - footing);
      const float* out = shared.out + (w * Tile::kRows + row) * Tile::kSumStride + channel;
      sum += weight * shared.sum[w][row];
#pragma unroll
      for (int j = 0; j < kVector; ++j) values[j] += weight * out[j];
    }
    const float inverse = 1.0f / sum;
#pragma unroll
    for (float& value : values) value = sum == 0.0f ? 0.0f : value * inverse;
    const float lse = log_of(top, sum);
    const int token = rows.token(row), q_head = rows.q_head(row);
    if (item.partial >= 0) {
      const int64_t at =
          item.partial + static_cast<int64_t>(head) * item.partial_heads + item.first_row + row;
      *reinterpret_cast<float4*>(p.partial_out + at * p.partial_dim + channel) = {
          values[0], values[1], values[2], values[3]};
      if (channel == 0) p.partial_lse[at] = lse;
      continue;
    }
    const int q_heads = p.pages.kv_heads * p.group.divisor();
    T* out = static_cast<T*>(p.out) +
             (static_cast<int64_t>(token) * q_heads + q_head) * p.pages.dim + channel;
    *reinterpret_cast<uint2*>(out) = {arch::pack(values[0], values[1], T{}),
                                      arch::pack(values[2], values[3], T{})};
    if (channel == 0) p.lse[static_cast<int64_t>(q_head) * p.query_tokens + token] = lse;
  }
}

template <typename Tile>
AFNEXT_DEVICE void attend(const PagedAttentionParams& p, const PagedItem& item, int head) {
  auto& shared = arch::shared_memory<typename Tile::Shared>();
  const int warp = threadIdx.x / arch::kWarp;
  const int row_warp = warp % Tile::kRowWarps, key_warp = warp / Tile::kRowWarps;
  const PagedRows rows(p, item, head, Tile::kRows);
  const int tiles = (item.end - item.begin + Tile::kKeys - 1) / Tile::kKeys;
  KeyStream<Tile> keys(p, item, head);
  keys.find();
  arch::griddepcontrol_wait();  // q and pages may be being written
  arch::griddepcontrol_launch_dependents();
#pragma unroll
  for (int i = 0; i < Tile::kStages - 1; ++i) {
    if (i < tiles) {
      keys.copy(shared.stages[i]);
      keys.find();
    }
    arch::cp_async_commit_group();
  }
  load_queries<Tile>(p, rows, shared.q);
  WarpRows<Tile> softmax(rows, 16 * row_warp);
  __syncthreads();
  const typename Tile::T* q = shared.q + 16 * row_warp * Tile::kDim;
  int stage = 0;
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
    arch::cp_async_wait_group<Tile::kStages - 2>();
    // The tile is there for all who read it, and all are done with the one before.
    if constexpr (Tile::kApart) {
      __syncwarp();
    } else {
      __syncthreads();
    }
    if (tile + Tile::kStages - 1 < tiles) {
      keys.copy(shared.stages[stage == 0 ? Tile::kStages - 1 : stage - 1]);
      keys.find();
    }
    arch::cp_async_commit_group();
    softmax.attend(p, q, shared.stages[stage], item.begin + tile * Tile::kKeys,
                   key_warp * Tile::kWarpKeys);
    stage = stage == Tile::kStages - 1 ? 0 : stage + 1;
  }
  __syncthreads();
  softmax.store(shared, row_warp, key_warp);
  __syncthreads();
  write_rows<Tile>(p, item, head, rows, shared);
  __syncthreads();
}

// Blocks take items in turn: the grid, [KV heads, items], has one shape, whatever the batch. Heads
// lie side by side in a page, and so do the blocks that read it.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    paged_attention_kernel(const __grid_constant__ PagedAttentionParams p) {
  const auto* header = reinterpret_cast<const PagedHeader*>(p.pages.words);
  const auto* items = reinterpret_cast<const PagedItem*>(header + 1);
  constexpr bool kSmall = Tile::kRows == kSmallRows;
  const int first = kSmall ? 0 : header->small;
  const int count = kSmall ? header->small : header->large;
#pragma unroll 1
  for (int index = blockIdx.y; index < count; index += gridDim.y) {
    const PagedItem item = items[first + index];
    attend<Tile>(p, item, blockIdx.x);
  }
  arch::griddepcontrol_wait();  // blocks without an item too
}

}  // namespace afnext::cuda
