// Attention on Hopper: sizes by head dim, a block's work, and how its shared memory is laid out.
// See attention_sm90_kernel.h.
//
//   D     rows x keys   registers to fetch, multiply   shared memory   stages   FLOPs a byte (L2)
//   128   128 x 128     2 x 32, 2 x 224                197 KB          2        128
//   64    192 x 128     32, 3 x 160                    183 KB          4        192
//
// Threads fill a multiprocessor's registers, so that one block of 16 warps runs on each. What a
// tile takes of it, in clocks, at 2,048 multiply-adds of the tensor cores, 16 exponentials and 4
// instructions of a warp a clock:
//
//   D     tensor cores   exponentials   instructions
//   128   2,048          1,024          700
//   64    1,536          1,536          1,000
//
// At D = 64 exponentials and tensor cores are needed all the time, so it comes less near to the
// peak. At D = 128 the L2 has to bring 5.5 TB/s for 700 TFLOP/s, about what it can; more rows a
// block would ask less of it, but 64 sums, 64 scores and 2 x 32 packed weights a thread leave no
// registers for a third warpgroup. At D = 64 a third warpgroup hides what the second set of weights
// would: on an H200, two groups with it are a fifth slower under a causal mask.
#pragma once

#include "cuda/arch/numbers.h"
#include "cuda/arch/tma.h"
#include "cuda/arch/wgmma.h"
#include "cuda/attention_params.h"

namespace afnext::cuda::sm90 {

constexpr int kWarpgroup = 128;  // threads
constexpr int kGroupRows = 64;   // of a warpgroup's products
constexpr int kPiece = 64;       // channels: 128 bytes, a row of a swizzled tile

template <int kDim>
struct Shape {
  static constexpr int kConsumers = kDim == 64 ? 3 : 2;  // warpgroups that multiply
  static constexpr int kProducers = 4 - kConsumers;      // and that fetch
  static constexpr int kRows = kGroupRows * kConsumers;  // of a block
  static constexpr int kKeys = 128;                      // of a tile
  static constexpr int kStages = kDim == 64 ? 4 : 2;     // tiles of K, and of V
  static constexpr int kWeights = kDim == 64 ? 1 : 2;    // of a warpgroup: in use, to come
  static constexpr int kThreads = kWarpgroup * (kProducers + kConsumers);
  static constexpr int kProducerRegisters = 32;
  static constexpr int kConsumerRegisters = (512 - kProducers * 32) / kConsumers;
};

// Named barriers: of the warps that fetch queries, of each warpgroup alone, and of the turns.
constexpr int kQueryBarrier = 1, kGroupBarrier = 2, kTurnBarrier = 5;

// Rows of 16-bit elements as TMA lays them out and wgmma reads them: pieces of 64 channels, whose
// 16-byte units change places by their row.
template <typename T, int kRows, int kDim>
struct alignas(1024) Tile {
  static constexpr int kPieces = kDim / kPiece;
  static constexpr uint32_t kBytes = kRows * kDim * sizeof(T);
  static constexpr uint32_t kPieceBytes = kBytes / kPieces, kEightRows = 8 * kPiece * sizeof(T);

  T pieces[kPieces][kRows][kPiece];

  AFNEXT_DEVICE T* at(unsigned row, unsigned channel) { return at(row / 8 * 8, row % 8, channel); }
  // The same of row `eights` + `row`, a multiple of 8 and what is less: known apart, they leave a
  // constant `channel` nothing to compute but an exclusive or.
  AFNEXT_DEVICE T* at(unsigned eights, unsigned row, unsigned channel) {
    const unsigned unit = channel % kPiece / 8 ^ row;
    return &pieces[channel / kPiece][eights + row][unit * 8 + channel % 8];
  }
  // The 16 channels from 16 i on, k of a product.
  AFNEXT_DEVICE uint64_t channels(int i) const {
    constexpr int kSteps = kPiece / 16;
    return arch::wgmma_advance(
        arch::wgmma_descriptor(pieces, arch::Swizzle::bytes128, 0, kEightRows),
        i / kSteps * kPieceBytes + i % kSteps * 32);
  }
  // The 16 rows from 16 i on, k of a product whose n are the channels.
  AFNEXT_DEVICE uint64_t rows(int i) const {
    return arch::wgmma_advance(
        arch::wgmma_descriptor(pieces, arch::Swizzle::bytes128, kPieceBytes, kEightRows),
        i * 2 * kEightRows);
  }
};

// An item's rows, and the tiles of keys that any of them sees.
template <int kDim>
struct Work {
  using S = Shape<kDim>;

  AFNEXT_DEVICE Work(const AttentionItem& item, int group)
      : band(item.sequence.band),
        first_query(item.sequence.first_query),
        first_key(item.sequence.first_key),
        kv_head(item.kv_head),
        first_row(item.first_row) {
    const int rows = band.queries * group - first_row;
    end_row = first_row + (rows < S::kRows ? rows : S::kRows);
    const int begin = band.first(first_row / group), end = band.end((end_row - 1) / group);
    first_tile = begin / S::kKeys;
    // Rows that see nothing get a tile all the same, of which they see nothing.
    tiles = end > begin ? (end + S::kKeys - 1) / S::kKeys - first_tile : 1;
  }
  // Of the sequence, the n-th that is visited: the last come first, as it is they that masks cut.
  AFNEXT_DEVICE int key(int n) const { return (first_tile + tiles - 1 - n) * S::kKeys; }

  Band band;
  int first_query, first_key;  // tokens
  int kv_head;
  int first_row, end_row;  // of the sequence's queries x heads
  int first_tile, tiles;
};

// A row of queries x heads: the keys of its sequence that it sees, and which of the results' rows
// are its own, -1 past the item's end. (2**31 rows of results would not fit a GPU.)
struct Row {
  int first, end;
  int out, lse;
};

// The query and head of a row that goes on by the same number of rows each time: with divisions at
// the start alone.
class RowWalk {
 public:
  AFNEXT_DEVICE RowWalk(int row, int step, int group)
      : query(row / group),
        head(row % group),
        queries_(step / group),
        heads_(step % group),
        group_(group) {}
  AFNEXT_DEVICE void next() {
    query += queries_;
    head += heads_;
    if (head >= group_) head -= group_, ++query;
  }

  int query, head;

 private:
  int queries_, heads_, group_;
};

template <typename T, int kDim>
struct Shared {
  using S = Shape<kDim>;
  static constexpr int kItems = 2;                     // one at work, one to come
  Tile<T, kGroupRows, kDim> q[kItems][S::kConsumers];  // in the end the results
  Tile<T, S::kKeys, kDim> k[S::kStages], v[S::kStages];
  Work<kDim> work[kItems];
  Row rows[kItems][S::kRows];
  uint64_t q_full[kItems], q_empty[kItems];
  uint64_t k_full[S::kStages], k_empty[S::kStages], v_full[S::kStages], v_empty[S::kStages];
  uint64_t v_landed;  // an item's first tile of V, whose end is still to be cleared
};

// Where the n-th tile of a block's life goes, or its n-th item, and the parity of the phase in
// which it is full.
template <int kStages>
struct Slot {
  AFNEXT_DEVICE explicit Slot(unsigned n) : stage(n % kStages), parity(n / kStages % 2) {}
  unsigned stage, parity;
};

// A block's items, one a round. Long ones come first, so they are dealt forwards and backwards in
// turn.
class Rounds {
 public:
  AFNEXT_DEVICE explicit Rounds(const AttentionParams& p) : p_(p) {}

  AFNEXT_DEVICE bool has(int round) const { return index(round) < p_.items; }
  AFNEXT_DEVICE AttentionItem item(int round) const { return item_of(p_, index(round)); }

 private:
  AFNEXT_DEVICE static int index(int round) {
    const int blocks = arch::opaque(static_cast<int>(gridDim.x));
    const int block = arch::opaque(static_cast<int>(blockIdx.x));
    return round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
  }

  const AttentionParams& p_;
};

}  // namespace afnext::cuda::sm90
