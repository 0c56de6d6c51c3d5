#include <algorithm>
#include <cstring>
#include <vector>

#include "cuda/attention_backward_sm90.h"
#include "cuda/attention_backward_sm90_finish.h"
#include "cuda/attention_backward_sm90_kernel.h"

namespace afnext::cuda {
namespace {

using namespace backward_sm90;

int divided_up(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// What a call's blocks do, and in which order.
//
// A block waits for those that add to the same sums before it, so these come earlier: of one tile
// of rows, blocks of keys in rising order. (Blocks start in the order of their numbers.) Within
// these limits, blocks of keys that share rows run side by side, so that the L2 holds the rows and
// their sums: the more of them the better for the L2, but the longer does the last one wait for its
// first turn. Items get shorter towards the end, where they would leave multiprocessors idle. On an
// H200, half a sequence's blocks side by side, 32 at most, and half of what is left for each
// multiprocessor in an item were the fastest of what was tried, from 2,048 to 8,192 tokens.
class Schedule {
 public:
  Schedule(const std::vector<PackedSequence>& sequences, const BackwardParams& p, int tile_queries,
           int multiprocessors)
      : group_(p.group), tile_queries_(tile_queries) {
    int most = 0;
    int64_t left = 0;
    for (const PackedSequence& s : sequences) {
      sequences_.push_back({s, tiles, blocks});
      tiles += divided_up(s.band.queries, tile_queries);
      const int count = divided_up(s.keys, kBlockKeys);
      blocks += count;
      most = std::max(most, count);
      for (int block = 0; block < count; ++block) {
        const Interval met = tiles_of(s, block);
        left += int64_t{p.kv_heads} * std::max(0, met.high - met.low);
      }
    }
    neighbours_ = std::clamp(most / 2, 1, kNeighbours);
    for (int first = 0; first < most; first += neighbours_) {
      const int length =
          std::max<int>(kShortest, static_cast<int>(left / (multiprocessors * kShare)));
      for (size_t n = 0; n < sequences.size(); ++n) {
        left -= add(static_cast<int>(n), first, length, p.kv_heads);
      }
    }
  }

  const std::vector<Sequence>& sequences() const { return sequences_; }
  const std::vector<Item>& items() const { return items_; }
  int tiles = 0, blocks = 0;

 private:
  // Blocks side by side at most, and items: the inverse of their share in what is left for a
  // multiprocessor, their tiles at least.
  static constexpr int kNeighbours = 32, kShare = 2, kShortest = 14;

  // The tiles of rows that a block of keys meets.
  Interval tiles_of(const PackedSequence& s, int block) const {
    const int first = block * kBlockKeys, end = std::min(first + kBlockKeys, s.band.keys);
    if (first >= end) return {0, 0};
    const Meetings all{s.band, group_};
    const int rows = tile_queries_ * group_;
    const Interval met{all.rows_of(first).low, all.rows_of(end - 1).high};
    if (met.low >= met.high) return {0, 0};
    return {met.low / rows, divided_up(met.high, rows)};
  }

  // Items of `length` tiles at most, for blocks of keys from `first` on; the last rows first.
  // Returns how many tiles they have.
  int64_t add(int n, int first, int length, int kv_heads) {
    const PackedSequence& s = sequences_[n].packed;
    const int end = std::min(first + neighbours_, divided_up(s.keys, kBlockKeys));
    Interval all{INT32_MAX, 0};
    for (int block = first; block < end; ++block) {
      const Interval met = tiles_of(s, block);
      if (met.low < met.high) all = {std::min(all.low, met.low), std::max(all.high, met.high)};
    }
    int64_t count = 0;
    for (int high = all.high; high > all.low; high -= length) {
      for (int head = 0; head < kv_heads; ++head) {
        for (int block = first; block < end; ++block) {
          const Interval met = tiles_of(s, block);
          const int from = std::max(met.low, high - length), to = std::min(met.high, high);
          if (from >= to) continue;
          items_.push_back({n, head, block, from, to,
                            (all.high - high) / length - (all.high - met.high) / length});
          count += to - from;
        }
      }
    }
    return count;
  }

  int group_, tile_queries_, neighbours_ = 1;
  std::vector<Sequence> sequences_;
  std::vector<Item> items_;
};

// A KV head's rows [tokens, heads, dim]: boxes of a piece's channels, its heads, a tile's queries.
arch::TensorMap map_of(const Heads& t, DType dtype, const BackwardParams& p, int64_t tokens,
                       int tile_queries) {
  constexpr uint64_t kBytes = 2;
  const uint64_t sizes[] = {static_cast<uint64_t>((p.dim + 7) / 8 * 8),
                            static_cast<uint64_t>(p.kv_heads * p.group),
                            static_cast<uint64_t>(tokens)};
  const uint64_t strides[] = {static_cast<uint64_t>(t.head) * kBytes,
                              static_cast<uint64_t>(t.token) * kBytes};
  const uint32_t box[] = {64, static_cast<uint32_t>(p.group), static_cast<uint32_t>(tile_queries)};
  return arch::make_tensor_map(t.data, dtype, 3, sizes, strides, box, arch::Swizzle::bytes128);
}

template <typename T, int kDim>
void run(const Call& call, DType dtype, const std::vector<PackedSequence>& sequences,
         int64_t query_tokens, const BackwardParams& all) {
  constexpr int kWarps = kConsumers * kWarpgroup / arch::kWarp;
  const int tile_queries = kTileRows / all.group;
  const Schedule schedule(sequences, all, tile_queries, call.device().multiprocessors);
  const size_t row_tiles = static_cast<size_t>(schedule.tiles) * all.kv_heads;
  const size_t key_blocks = static_cast<size_t>(schedule.blocks) * all.kv_heads;

  // Sequences, then items, in one copy.
  const size_t sequence_bytes = schedule.sequences().size() * sizeof(Sequence);
  const size_t item_bytes = schedule.items().size() * sizeof(Item);
  std::vector<char> bytes(sequence_bytes + item_bytes);
  std::memcpy(bytes.data(), schedule.sequences().data(), sequence_bytes);
  if (item_bytes > 0) {
    std::memcpy(bytes.data() + sequence_bytes, schedule.items().data(), item_bytes);
  }
  const Scratch plan(call, bytes.size());
  call.upload(plan.as<char>(), bytes.data(), bytes.size());
  const auto* items = reinterpret_cast<const Item*>(plan.as<char>() + sequence_bytes);

  const size_t turn_bytes = (row_tiles + key_blocks * kWarps) * sizeof(uint32_t);
  const Scratch turns(call, turn_bytes);
  call.clear(turns.as<uint32_t>(), turn_bytes);
  const size_t key_tiles = key_blocks * kConsumers;
  const Scratch sums(call, (row_tiles + 2 * key_tiles) * sizeof(SumTile<kDim>));
  auto* tiles = sums.as<SumTile<kDim>>();

  const Params p{all,
                 plan.as<Sequence>(),
                 static_cast<int>(sequences.size()),
                 items,
                 tile_queries,
                 schedule.tiles,
                 schedule.blocks,
                 tiles,
                 tiles + row_tiles,
                 tiles + row_tiles + key_tiles,
                 turns.as<uint32_t>(),
                 turns.as<uint32_t>() + row_tiles};
  if (!schedule.items().empty()) {
    call.launch<attention_backward_kernel<T, kDim>>(
        static_cast<unsigned>(schedule.items().size()), kThreads, sizeof(Shared<kDim>), p,
        map_of(all.q, dtype, all, query_tokens, tile_queries),
        map_of(all.grad_out, dtype, all, query_tokens, tile_queries));
  }
  call.launch<finish_kernel<T, kDim>>(static_cast<unsigned>(row_tiles + 2 * key_tiles),
                                      kFinishThreads, sizeof(FinishTile<kDim>), p);
}

template <typename T>
void run(const Call& call, DType dtype, const std::vector<PackedSequence>& sequences,
         int64_t query_tokens, const BackwardParams& p) {
  p.dim <= 64 ? run<T, 64>(call, dtype, sequences, query_tokens, p)
              : run<T, 128>(call, dtype, sequences, query_tokens, p);
}

}  // namespace

bool attention_backward_sm90(const Call& call, DType dtype,
                             const std::vector<PackedSequence>& sequences, int64_t query_tokens,
                             const BackwardParams& p) {
  const bool fits = p.dim <= 64 || (p.dim > 96 && p.dim <= 128);
  if (call.device().sm != 90 || dtype == DType::f32 || !fits || p.group > kTileRows ||
      !p.q.steps() || !p.grad_out.steps()) {
    return false;
  }
  dtype == DType::bf16 ? run<bf16>(call, dtype, sequences, query_tokens, p)
                       : run<f16>(call, dtype, sequences, query_tokens, p);
  return true;
}

}  // namespace afnext::cuda
