// The warps beside those that multiply: one asks the copy engine for rows, one fetches what their
// softmax needs, two add to the gradients of rows.
#pragma once

#include "cuda/arch/copy.h"
#include "cuda/arch/mbarrier.h"
#include "cuda/arch/memory.h"
#include "cuda/arch/tma.h"
#include "cuda/attention_backward_sm90_tiles.h"

namespace afnext::cuda::backward_sm90 {

constexpr int kRowFetcher = 0, kSoftmaxFetcher = 1, kFetchers = 2;
constexpr int kFirstAdder = 2, kAdders = 2;

// All tiles of queries and of gradients of results. One thread.
template <int kDim>
AFNEXT_DEVICE void fetch_rows(Shared<kDim>& shared, const Params& p, const arch::TensorMap& map_q,
                              const arch::TensorMap& map_grad_out) {
  using RowTile = Tile<kTileRows, kDim>;
  constexpr int kPieces = kDim / RowTile::kPiece;
  const Work& work = shared.work;
  const int tiles = work.tiles(), first_head = work.row_places.first_head;
  const auto bytes = static_cast<uint32_t>(2 * kPieces * work.tile_rows() * RowTile::kPiece * 2);
#pragma unroll 1
  for (int n = 0; n < tiles; ++n) {
    const Slot<kStages> slot(static_cast<unsigned>(n));
    auto& stage = shared.stages[slot.at];
    uint64_t* full = &shared.full[slot.at];
    const int token = work.row_places.first + work.tile(n) * work.tile_queries;
    arch::mbarrier_wait(&shared.empty[slot.at], slot.parity ^ 1);
    arch::mbarrier_arrive_expect_tx(full, bytes);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int channel = i * RowTile::kPiece;
      arch::cp_async_bulk_tensor_load(map_q, {channel, first_head, token}, stage.q.piece(i), full);
      arch::cp_async_bulk_tensor_load(map_grad_out, {channel, first_head, token},
                                      stage.grad_out.piece(i), full);
    }
  }
}

// And zeros for rows that are not there.
template <int kDim>
AFNEXT_DEVICE void fetch_softmax(Shared<kDim>& shared) {
  const Work& work = shared.work;
  const int lane = static_cast<int>(threadIdx.x) % arch::kWarp;
  const int rows = work.meetings.rows(), tile_rows = work.tile_rows(), tiles = work.tiles();
#pragma unroll 1
  for (int n = 0; n < tiles; ++n) {
    const Slot<kStages> slot(static_cast<unsigned>(n));
    const int first = work.tile(n) * tile_rows;
    arch::mbarrier_wait(&shared.empty[slot.at], slot.parity ^ 1);
#pragma unroll
    for (int row = lane; row < kTileRows; row += arch::kWarp) {
      const bool real = row < tile_rows && first + row < rows;
      const float2* from = work.softmax + (real ? first + row : 0);
      arch::cp_async<4>(shared.softmax[slot.at].lse + row, &from->x, real ? 4 : 0);
      arch::cp_async<4>(shared.softmax[slot.at].delta + row, &from->y, real ? 4 : 0);
    }
    arch::cp_async_commit_group();
    arch::cp_async_wait_group<0>();
    __syncwarp();
    if (lane == 0) arch::mbarrier_arrive(&shared.full[slot.at]);
  }
}

// Where tiles are not full of rows, copies leave their ends alone.
template <int kDim>
AFNEXT_DEVICE void clear_ends(Shared<kDim>& shared, int tile_rows) {
  constexpr int kChunks = kDim / 8;
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll 1
  for (int i = tile_rows * kChunks + thread; i < kTileRows * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
#pragma unroll
    for (auto& stage : shared.stages) {
      *reinterpret_cast<uint4*>(stage.q.at(row, chunk)) = {};
      *reinterpret_cast<uint4*>(stage.grad_out.at(row, chunk)) = {};
    }
  }
  arch::fence_proxy_async();
}

// Adds every second tile's gradients of queries to their sums when it is this block's turn, and
// passes the turn on. One thread for even tiles and one for odd: from the copy's start to the next
// block's turn passes about as much time as from tile to tile, which one alone would not keep up
// with.
template <int kDim>
AFNEXT_DEVICE void add_row_gradients(Shared<kDim>& shared, const Params& p, int side) {
  const Work& work = shared.work;
  const int tiles = work.tiles();
  int parity = 0;
#pragma unroll 1
  for (int n = side; n < tiles; n += kAdders, parity ^= 1) {
    const int64_t at = work.first_sums + work.tile(n);
    auto* sums = static_cast<SumTile<kDim>*>(p.grad_q) + at;
    uint32_t* turns = p.row_turns + at;
    const auto turn = static_cast<uint32_t>(work.turn_at(work.tile(n)));
    while (arch::load_acquire(turns) < turn) {
    }
    arch::mbarrier_wait(&shared.written[side], parity);
    if (turn == 0) {
      arch::cp_async_bulk_store(sums, &shared.grad_q, sizeof(*sums));
    } else {
      arch::cp_reduce_async_bulk_add(sums, &shared.grad_q, sizeof(*sums));
    }
    arch::cp_async_bulk_commit_group();
    arch::cp_async_bulk_wait_group_read<0>();
    arch::mbarrier_arrive(&shared.taken[side]);
    arch::cp_async_bulk_wait_group<0>();
    arch::add_release(turns, 1);
  }
}

}  // namespace afnext::cuda::backward_sm90
