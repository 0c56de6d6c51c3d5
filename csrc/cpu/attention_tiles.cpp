// Attention in bf16 on AMX tiles. A tile of scores is 16 keys, as they lie in memory, by 16
// queries; one of the output is 16 channels of the transposed values by 16 queries. Between them
// the softmax is that of InPairs, whose pairs of queries and of weights are what tiles of columns
// are made of.
//
// Below the level amx the tiles are emulated: that is for tests alone.
#include "cpu/amx/tile_product.h"
#include "cpu/attention_forward.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kTileDepth = kTileBytes / 2;
static_assert(kLanes == kTileHeight, "a tile's columns are a vector of queries");

AFNEXT_INLINE int64_t tiles_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

struct InTiles {
  using Key = bf16;
  using Session = TileSession;
  // Sums of the output are loaded and stored once a panel: more keys make that rare.
  static constexpr int64_t kPanelKeys = 256;

  static int64_t memory(const AttentionProblem& p) {
    return ((2 * kPanelKeys + kTileHeight) * p.dim + p.dim * kValueStride) / 2;
  }
  static float log_unit(const AttentionProblem& p, float peak) {
    return InPairs::log_unit(p, peak);
  }
  static void read_queries(const Block& block, float* rows, float* columns) {
    InPairs::read_queries(block, rows, columns);
  }

  InTiles(const KeysAndValues<bf16, bf16>& source, int64_t first, int64_t count, float* memory) {
    const int64_t dim = source.p.dim;
    bf16* buffer = reinterpret_cast<bf16*>(memory);
    bf16* last = buffer + 2 * kPanelKeys * dim;
    const auto k = source.keys(first, count, buffer);
    keys = k.data, key_stride = k.stride, whole_tiles = count / kTileHeight;
    copy_last_keys(count % kTileHeight, dim, last);
    bf16* values = last + kTileHeight * dim;
    const auto v = source.values(first, count, buffer + kPanelKeys * dim);
    transpose_values(v.data, v.stride, count, dim, values);
    last_keys = last, values_by_channel = values;
  }

  template <int N>
  void meet(const Block& block, int64_t first, int64_t count, float* scores, Running& s) const {
    const int64_t dim = block.problem->dim;
    product_in_tiles<N>(
        tiles_of(count, kTileHeight), [&](int64_t i) { return keys_of(i, dim); },
        {s.queries, kBlockRows}, dim / kTileDepth, true, scores);
    F32 shrink[N];
    InPairs::weigh<N>(block, first, count, scores, s, shrink);
    const int64_t steps = tiles_of(count, kTileDepth), pairs = (count + 1) / 2;
    __builtin_memset(scores + pairs * kBlockRows, 0,
                     (steps * kTileDepth / 2 - pairs) * kBlockRows * sizeof(float));
    shrink_sums<N>(dim, shrink, s.out);
    product_in_tiles<N>(
        dim / kTileHeight, [&](int64_t i) { return values_of(i); }, {scores, kBlockRows}, steps,
        false, s.out);
  }

 private:
  // Channels are so far apart that those of a tile do not crowd each other out of the cache.
  static constexpr int64_t kValueStride = kPanelKeys + kTileDepth;

  const bf16 *keys, *last_keys, *values_by_channel;
  int64_t key_stride, whole_tiles;

  // Keys of the panel past its last whole tile; nothing behind them is read.
  TileRows keys_of(int64_t tile, int64_t dim) const {
    if (tile == whole_tiles) return {last_keys, dim * 2};
    return {keys + tile * kTileHeight * key_stride, key_stride * 2};
  }
  TileRows values_of(int64_t tile) const {
    return {values_by_channel + tile * kTileHeight * kValueStride, kValueStride * 2};
  }

  void copy_last_keys(int64_t count, int64_t dim, bf16* last) const {
    copy_rows(keys + whole_tiles * kTileHeight * key_stride, key_stride, count, dim, last, dim);
    __builtin_memset(last + count * dim, 0, (kTileHeight - count) * dim * sizeof(bf16));
  }

  // [count, dim] to [dim, kValueStride], zeros past the last key: weights there are zero, which a
  // NaN would not leave so.
  static void transpose_values(const bf16* rows, int64_t stride, int64_t count, int64_t dim,
                               bf16* out) {
    static constexpr bf16 kNothing[kLanes] = {};
    for (int64_t key = 0; key < count; key += kTileDepth) {
      for (int64_t d = 0; d < dim; d += kLanes) {
        const auto at = [&](int64_t k) { return k < count ? rows + k * stride + d : kNothing; };
        F32 square[kLanes];
        for (int i = 0; i < kLanes; ++i)
          square[i] = zip_pairs(at(key + 2 * i), at(key + 2 * i + 1));
        transpose(square);
        for (int i = 0; i < kLanes; ++i)
          store(reinterpret_cast<float*>(out + (d + i) * kValueStride + key), square[i]);
      }
    }
  }

  // Once the peaks are found, they seldom rise.
  template <int N>
  static void shrink_sums(int64_t dim, const F32 (&shrink)[N], float* sums) {
    F32 most{};
    for (int n = 0; n < N; ++n) most = max(most, 1.0f - shrink[n]);
    if (largest(most) == 0.0f) return;
    for (int64_t d = 0; d < dim; ++d) {
      for (int n = 0; n < N; ++n) {
        float* sum = sums + d * kBlockRows + n * kLanes;
        store(sum, load(sum) * shrink[n]);
      }
    }
  }
};

}  // namespace

void attention_tiles(const AttentionArgs& args) { run<bf16, InTiles>(args); }

AFNEXT_REGISTER(attention_tiles, AttentionArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
