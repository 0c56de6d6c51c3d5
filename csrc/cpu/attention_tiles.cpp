// Attention in bf16 on AMX tiles. A tile of scores is 16 keys, as they lie in memory, by 16
// queries; one of the output is 16 channels of the transposed values by 16 queries. Between them
// the softmax is that of InPairs, whose pairs of queries and of weights are what tiles of columns
// are made of.
//
// Below the level amx the tiles are emulated: that is for tests alone.
#include "cpu/attention_forward.h"
#include "cpu/attention_tile_rows.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

struct InTiles {
  using Key = bf16;
  using Session = TileSession;
  // Sums of the output are loaded and stored once a panel: more keys make that rare.
  static constexpr int64_t kPanelKeys = 256;

  static int64_t memory(const AttentionProblem& p) {
    return (2 * kPanelKeys * p.dim + KeyTiles::memory(p.dim) + Values::memory(p.dim)) / 2;
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
    keys = KeyTiles(source.keys(first, count, buffer), count, dim, last);
    values = Values(source.values(first, count, buffer + kPanelKeys * dim), count, dim,
                    last + KeyTiles::memory(dim));
  }

  template <int N>
  void meet(const Block& block, int64_t first, int64_t count, float* scores, Running& s) const {
    const int64_t dim = block.problem->dim;
    product_in_tiles<N>(tiles_of(count, kTileHeight), [&](int64_t i) { return keys.at(i); },
                        {s.queries, kBlockRows}, dim / kTileDepth, true, {scores, kBlockRows});
    F32 shrink[N];
    InPairs::weigh<N>(block, first, count, scores, s, shrink);
    const int64_t steps = tiles_of(count, kTileDepth), pairs = (count + 1) / 2;
    __builtin_memset(scores + pairs * kBlockRows, 0,
                     (steps * kTileDepth / 2 - pairs) * kBlockRows * sizeof(float));
    shrink_sums<N>(dim, shrink, s.out);
    product_in_tiles<N>(dim / kTileHeight, [&](int64_t i) { return values.at(i); },
                        {scores, kBlockRows}, steps, false, {s.out, kBlockRows});
  }

 private:
  using Values = ChannelTiles<kPanelKeys>;

  KeyTiles keys;
  Values values;

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
