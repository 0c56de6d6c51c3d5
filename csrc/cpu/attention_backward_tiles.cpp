// Attention's gradients in bf16 on AMX tiles: all five products of a panel of keys and a block of
// queries, in the layouts of InPairs, whose pairs are what tiles of columns are made of. Its
// softmax is that of InPairs too.
//
//   scores, grads   16 keys of K or V, as they lie in memory, by 16 queries or gradients of outputs
//   keys, values    16 keys of slopes or weights by 16 channels of the queries or those gradients
//   queries         16 channels of the keys, transposed once a tile of them, by 16 queries of
//   slopes
//
// Below the level amx the tiles are emulated: that is for tests alone.
#include "cpu/attention_backward_pass.h"
#include "cpu/attention_tile_rows.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

static_assert(kRowPad == 2 * kBlockRows && kRowPad % kTileDepth == 0,
              "the rows of two blocks are whole steps of a product over them");

class InTiles : public InPairs {
 public:
  using Session = TileSession;

  explicit InTiles(const AttentionBackwardArgs& args) : InPairs(args) {
    const int64_t last = KeyTiles::memory(width_);
    last_keys_ = scratch<bf16>(2, 2 * last + Channels::memory(width_));
    last_values_ = last_keys_ + last, by_channel_ = last_values_ + last;
  }

  // Delta comes out of tiles as the product does that it is taken off from, so that a row which
  // sees a single key has slopes of exactly zero. Both meet in float32, far finer than the bf16 of
  // what they are made of and of the slopes.
  void arrange(const Queries& q) {
    arrange_inputs(q);
    for (int64_t n = 0; n < q.block.vectors(); ++n) {
      product_in_tiles<1>(
          1, [&](int64_t) { return TileRows{rows_ + n * kTileHeight * width_, width_ * 2}; },
          {grad_columns_ + q.row * pairs_ + n * kLanes, kBlockRows}, width_ / kTileDepth, true,
          {scores_ + n * kLanes, kBlockRows});
    }
    for (int64_t i = 0; i < q.block.count; ++i)
      q.grad_lse[i] -= scores_[i % kTileHeight * kBlockRows + i];
    clear_odd_block(q);
  }

  void read_keys(const KeysAndValues<bf16, bf16>& source, int64_t first, int64_t count) {
    const auto keys = source.keys(first, count, buffer_);
    const auto values = source.values(first, count, buffer_ + kTileKeys * width_);
    keys_ = KeyTiles(keys, count, width_, last_keys_);
    values_ = KeyTiles(values, count, width_, last_values_);
    channels_ = Channels(keys, count, width_, by_channel_);
  }

  template <int N>
  void meet(int at, const Queries& q, const Panel& k) const {
    const int64_t reach = k.reach(q.block), column = q.row * pairs_;
    multiply<N>(keys_, k.at, reach, columns_ + column, scores_);
    multiply<N>(values_, k.at, reach, grad_columns_ + column, raw_slopes_);
    weigh<N>(at, q, {k.first, k.at, tiles_of(k.count, kTileDepth) * kTileDepth}, reach);
  }

  void add_to_keys(const Queries& group, const Panel& k, int64_t first, int64_t end, float* keys,
                   float* values) const {
    const int64_t tiles = tiles_of(k.count, kTileHeight);
    const int64_t from = first / kRowPad * kRowPad, to = tiles_of(end, kRowPad) * kRowPad;
    clear_weights(tiles * kTileHeight, from, first);
    clear_weights(tiles * kTileHeight, tiles_of(end, kLanes) * kLanes, to);
    const int64_t row = (group.row + from) / 2 * stride_, steps = (to - from) / kTileDepth;
    add<2>(tiles, weights_ + from, zipped_grads_ + row, steps, values + k.at * width_);
    add<2>(tiles, slopes_ + from, zipped_ + row, steps, keys + k.at * width_);
  }

  template <int N>
  void add_to_queries(int at, int64_t first, int64_t end, float* sums) const {
    product_in_tiles<N>(width_ / kTileHeight, [&](int64_t i) { return channels_.at(i, first); },
                        {zipped_slopes_ + (at * kTileKeys + first) / 2 * kBlockRows, kBlockRows},
                        tiles_of(end - first, kTileDepth), false, {sums, kBlockRows});
  }

 private:
  using Channels = ChannelTiles<kTileKeys>;

  // Keys [first, first + count) by a block.
  template <int N>
  void multiply(const KeyTiles& keys, int64_t first, int64_t count, const float* columns,
                float* out) const {
    product_in_tiles<N>(tiles_of(count, kTileHeight),
                        [&](int64_t i) { return keys.at(first / kTileHeight + i); },
                        {columns, kBlockRows}, width_ / kTileDepth, true, {out, kBlockRows});
  }

  // Tiles of weights or slopes by all channels, N tiles of those at a time.
  template <int N>
  void add(int64_t tiles, const bf16* weights, const float* zipped, int64_t steps,
           float* sums) const {
    for (int64_t d = 0; d < width_; d += N * kTileHeight) {
      product_in_tiles<N>(
          tiles, [&](int64_t i) { return TileRows{weights + i * kTileHeight * kRows, kRows * 2}; },
          {zipped + d, stride_}, steps, false, {sums + d, width_});
    }
  }

  // Rows of a pair of blocks that do not meet the keys.
  void clear_weights(int64_t keys, int64_t first, int64_t end) const {
    const size_t size = static_cast<size_t>(end - first) * sizeof(bf16);
    for (int64_t at = first; at < keys * kRows; at += kRows) {
      __builtin_memset(weights_ + at, 0, size);
      __builtin_memset(slopes_ + at, 0, size);
    }
  }

  // The second block of a pair, where the rows of a sequence end with the first.
  void clear_odd_block(const Queries& q) const {
    const AttentionSequence& s = *q.block.sequence;
    const int64_t next = q.block.row + kBlockRows;
    if (next < s.band.queries * a_.problem.group || next >= s.rows) return;
    const int64_t at = (q.row + kBlockRows) / 2 * stride_;
    __builtin_memset(zipped_ + at, 0, kBlockRows / 2 * stride_ * sizeof(float));
    __builtin_memset(zipped_grads_ + at, 0, kBlockRows / 2 * stride_ * sizeof(float));
  }

  bf16 *last_keys_, *last_values_, *by_channel_;
  KeyTiles keys_, values_;
  Channels channels_;
};

}  // namespace

void attention_backward_tiles(const AttentionBackwardArgs& args) { run<bf16, InTiles>(args); }

AFNEXT_REGISTER(attention_backward_tiles, AttentionBackwardArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
