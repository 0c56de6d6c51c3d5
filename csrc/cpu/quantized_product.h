// How a product with quantised weights is cut into tiles, whatever computes a tile.
//
// A Kernel has
//   Engine        how rows of x become integers (quantized_rows.h)
//   kRows         rows of x in a tile
//   kFullTiles    whether room is left for kRows rows in the last tile too
//   Session       lives as long as a thread computes tiles
//   prepare(q, panel)                            once a panel: what tile() takes beside it
//   tile(rows, q, panel, prepared, x, sums)      sums [rows, 32] of a tile of x against a panel
// or, instead of the last three, multiply(round): all tiles of x against all panels.
// An output is summed in order of K whatever the tiles, the threads and the other rows of x are.
#pragma once

#include "cpu/packed_epilogue.h"
#include "cpu/parallel.h"
#include "cpu/quantized_rows.h"
#include "cpu/scratch.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kRoundBytes = 12 << 20;     // of x: rows in flight stay in the last cache
constexpr int64_t kBytesPerThread = 1 << 17;  // of the weight: below this, waking one costs more

struct NoSession {
  AFNEXT_INLINE_METHOD NoSession() {}
};

// Rows [row, row + rows) of x as integers, against every panel.
template <typename Kernel>
struct Round {
  using Engine = typename Kernel::Engine;

  const PackedLinearArgs& a;
  const QuantizedPanel& q;
  int64_t row, rows, tiles;
  int32_t* words;

  Round(const PackedLinearArgs& args, const QuantizedPanel& panel, int64_t first, int64_t count)
      : a(args),
        q(panel),
        row(first),
        rows(count),
        tiles((count + Kernel::kRows - 1) / Kernel::kRows),
        words(scratch<int32_t>(
            0, static_cast<size_t>(q.blocks * block_words<Engine>(q, tiles * Kernel::kRows)))) {}

  // Tiles of even height, where they need not be full: 15 rows are 8 + 7, not 14 + 1.
  int64_t begin(int64_t tile) const {
    if (!Kernel::kFullTiles) return rows * tile / tiles;
    return tile < tiles ? tile * Kernel::kRows : rows;
  }
  int64_t height(int64_t tile) const { return begin(tile + 1) - begin(tile); }
  int64_t room(int64_t tile) const { return Kernel::kFullTiles ? Kernel::kRows : height(tile); }
  int32_t* words_of(int64_t tile) const {
    return words + q.blocks * block_words<Engine>(q, begin(tile));
  }

  template <typename T>
  void quantize() const {
    const float limit = a.weight.activation_bits == 8 ? 127.0f : 32512.0f;  // 127 * 256
    const int64_t shared = q.scale_blocks(a.weight.activation_bits);
    parallel_for(rows, (1 << 15) / (a.weight.k + 1) + 1, [&](int64_t first, int64_t last) {
      int64_t t = first * tiles / rows;
      for (int64_t r = first; r < last; ++r) {
        while (begin(t) > r) --t;
        while (begin(t + 1) <= r) ++t;
        const T* x = static_cast<const T*>(a.x) + (row + r) * a.x_stride;
        Extent extent{};
        for (int64_t b = 0; b < q.blocks; ++b) {
          const T* block = x + b * kBlock;
          const int64_t left = a.weight.k - b * kBlock;
          if (b % shared == 0) extent = extent_of(block, smaller(left, shared * kBlock));
          quantize_block<Engine>(q, limit, extent, block, smaller(left, kBlock), r - begin(t),
                                 room(t), words_of(t) + b * block_words<Engine>(q, room(t)));
        }
      }
    });
  }

  // Every panel is read once from memory and meets all tiles while it lies in L2.
  void multiply() const {
    const int64_t panels = a.weight.panels(), wanted = 4 * num_threads();
    const int64_t split = panels >= wanted ? 1 : (wanted + panels - 1) / panels;
    const int64_t parts = split < tiles ? split : tiles;
    const int64_t cost = q.bytes * (1 + tiles / parts / 2) + 1;
    parallel_for(panels * parts, kBytesPerThread / cost + 1, [&](int64_t first, int64_t last) {
      [[maybe_unused]] const typename Kernel::Session session;
      alignas(64) float sums[Kernel::kRows * kPanelColumns];
      for (int64_t i = first; i < last; ++i) {
        const int64_t panel = i / parts, part = i % parts;
        const char* data = static_cast<const char*>(a.weight.data) + panel * q.bytes;
        const char* prepared = Kernel::prepare(q, data);
        for (int64_t t = tiles * part / parts; t < tiles * (part + 1) / parts; ++t) {
          Kernel::tile(height(t), q, data, prepared, words_of(t), sums);
          finish(a, row + begin(t), height(t), panel, sums);
        }
      }
      finish_streams();
    });
  }
};

template <typename Kernel>
void quantized_product(const PackedLinearArgs& a) {
  const QuantizedPanel q(a.weight);
  constexpr int64_t kLeast = 8 * Kernel::kRows;
  const int64_t fitting =
      kRoundBytes / (4 * q.blocks * block_words<typename Kernel::Engine>(q, 1) + 1);
  const int64_t most = fitting > kLeast ? fitting : kLeast;
  const int64_t rounds = (a.m + most - 1) / most;
  for (int64_t i = 0; i < rounds; ++i) {
    const int64_t row = a.m * i / rounds;
    const Round<Kernel> round(a, q, row, a.m * (i + 1) / rounds - row);
    a.dtype == DType::f32 ? round.template quantize<float>() : round.template quantize<bf16>();
    if constexpr (requires { Kernel::multiply(round); }) {
      Kernel::multiply(round);
    } else {
      round.multiply();
    }
  }
}

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
