// What the kernel of attention's backward for Hopper works on: tiles in shared memory, sums in
// global memory, and the pieces of work.
#pragma once

#include "cuda/arch/barrier.h"
#include "cuda/arch/wgmma.h"
#include "cuda/attention_backward_params.h"

namespace afnext::cuda::backward_sm90 {

constexpr int kWarpgroup = 4 * arch::kWarp;
constexpr int kConsumers = 2;                        // warpgroups that multiply
constexpr int kGroupKeys = 64;                       // keys of one of them
constexpr int kBlockKeys = kConsumers * kGroupKeys;  // of a block
constexpr int kTileRows = 64;                        // rows that stream past at a time, at most
constexpr int kStages = 3;                           // of them
constexpr int kThreads = kWarpgroup * (1 + kConsumers);

// Rows of 16-bit elements as wgmma reads them: pieces of 64 channels, whose rows of 128 bytes are
// swizzled.
template <int kRows, int kDim>
struct alignas(1024) Tile {
  static constexpr int kPiece = 64;
  static constexpr uint32_t kPieceBytes = kRows * kPiece * 2, kEightRows = 8 * kPiece * 2;

  uint16_t elements[kRows * kDim];

  // Where 8 channels of a row lie.
  AFNEXT_DEVICE uint16_t* piece(int i) { return elements + i * kRows * kPiece; }
  AFNEXT_DEVICE uint16_t* at(int row, int chunk) {
    return elements + chunk / 8 * kRows * kPiece + row * kPiece + 8 * (chunk % 8 ^ row % 8);
  }
  // Of the rows from `row` on, a multiple of 8, the 16 channels from 16 k on: k of a product.
  AFNEXT_DEVICE uint64_t channels(int row, int k) const {
    constexpr int kSteps = kPiece / 16;
    return arch::wgmma_advance(descriptor(row), k / kSteps * kPieceBytes + k % kSteps * 32);
  }
  // From `channel` on, a multiple of 32, the channels of the 16 rows from 16 k on: these rows are k
  // of a product, m or n its channels.
  AFNEXT_DEVICE uint64_t rows(int channel, int k) const {
    return arch::wgmma_advance(
        descriptor(0), channel / kPiece * kPieceBytes + channel % kPiece * 2 + k * 2 * kEightRows);
  }

 private:
  AFNEXT_DEVICE uint64_t descriptor(int row) const {
    return arch::wgmma_descriptor(elements + row * kPiece, arch::Swizzle::bytes128, kPieceBytes,
                                  kEightRows);
  }
};

// A sequence, and where its tiles of rows and blocks of keys begin among those of all.
struct Sequence {
  PackedSequence packed;
  int first_tile, first_block;
};

// Tiles [first, end) of rows of one KV head, met by one block of its keys. It is the `turn`-th to
// add to the gradients of these.
struct Item {
  int sequence, kv_head, block, first, end, turn;
};

// Sums of gradients in float32, which blocks add to in turns. A tile of 64 rows lies as a product's
// registers do: for 8 channels each, four floats of a thread after another's.
template <int kDim>
struct SumTile {
  float4 at[kDim / 8][kWarpgroup];
};

struct Params {
  BackwardParams all;
  const Sequence* sequences;
  int sequence_count;
  const Item* items;
  int tile_queries;                // whose heads are a tile's rows: as many as it has room for
  int tiles, blocks;               // of all sequences, for one KV head
  void *grad_q, *grad_k, *grad_v;  // SumTiles: [KV heads, tiles], [KV heads, blocks, kConsumers]
  // How many have added to a tile of rows, and to a block of keys: one for each warp.
  uint32_t *row_turns, *key_turns;
};

// An item as a block works on it.
struct Work {
  Meetings meetings;
  KeyPlaces key_places;
  RowPlaces row_places;
  const float2* softmax;
  int first_key, block, first, end, turn, tile_queries;
  int64_t first_sums, block_sums;  // of the sequence's first tile, and of the block

  AFNEXT_DEVICE Work(const Params& p, const Item& item)
      : Work(p, item, p.sequences[item.sequence]) {}

  // The tiles in the order of work: the last rows come first, as they meet the most keys.
  AFNEXT_DEVICE int tiles() const { return end - first; }
  AFNEXT_DEVICE int tile(int n) const { return end - 1 - n; }
  AFNEXT_DEVICE int tile_rows() const { return tile_queries * meetings.group; }
  // How many blocks of keys add to a tile before this one.
  AFNEXT_DEVICE int turn_at(int tile) const {
    return block - meetings.band.first(tile * tile_queries) / kBlockKeys;
  }

 private:
  AFNEXT_DEVICE Work(const Params& p, const Item& item, const Sequence& s)
      : meetings{s.packed.band, p.all.group},
        key_places{s.packed.first_key, item.kv_head},
        row_places{s.packed.first_query, item.kv_head * p.all.group, p.all.group},
        softmax(p.all.softmax + item.kv_head * p.all.all_rows +
                int64_t{s.packed.first_query} * p.all.group),
        first_key(item.block * kBlockKeys),
        block(item.block),
        first(item.first),
        end(item.end),
        turn(item.turn),
        tile_queries(p.tile_queries),
        first_sums(int64_t{item.kv_head} * p.tiles + s.first_tile),
        block_sums(int64_t{item.kv_head} * p.blocks + s.first_block + item.block) {}
};

template <int kDim>
struct Shared {
  struct Stage {
    Tile<kTileRows, kDim> q, grad_out;
  };
  struct Softmax {
    float lse[kTileRows], delta[kTileRows];
  };
  Tile<kBlockKeys, kDim> k, v;
  // Gradients of scores, keys x rows, for the product of both warpgroups: two, so that a tile's can
  // be written while the last one's are still read.
  Tile<kBlockKeys, kTileRows> scores[2];
  SumTile<kDim> grad_q;
  Stage stages[kStages];
  Softmax softmax[kStages];
  Work work;
  uint64_t full[kStages], empty[kStages];
  uint64_t written[2], taken[2];  // grad_q of even and of odd tiles, and that it has been read
};

// The n-th tile's place among `count`, and the parity of the phase in which it is there.
template <int kCount>
struct Slot {
  AFNEXT_DEVICE explicit Slot(unsigned n) : at(n % kCount), parity(n / kCount % 2) {}
  unsigned at, parity;
};

}  // namespace afnext::cuda::backward_sm90
