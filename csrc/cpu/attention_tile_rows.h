// Keys or values of attention as rows of AMX tiles, by key or by channel.
#pragma once

#include "cpu/amx/tile_product.h"
#include "cpu/attention_block.h"
#include "cpu/simd/pairs.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int64_t kTileDepth = kTileBytes / 2;
static_assert(kLanes == kTileHeight, "a tile's columns are a vector of queries");

AFNEXT_INLINE int64_t tiles_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

using BFloatRows = KeysAndValues<bf16, bf16>::Rows;

// A tile is 16 keys as they lie in memory, but for those past the last whole one, which are copied:
// nothing behind them is read.
class KeyTiles {
 public:
  static constexpr int64_t memory(int64_t dim) { return kTileHeight * dim; }

  KeyTiles() = default;
  KeyTiles(const BFloatRows& x, int64_t count, int64_t dim, bf16* memory)
      : rows_(x.data), last_(memory), stride_(x.stride), dim_(dim), whole_(count / kTileHeight) {
    const int64_t left = count % kTileHeight;
    copy_rows(rows_ + whole_ * kTileHeight * stride_, stride_, left, dim, memory, dim);
    __builtin_memset(memory + left * dim, 0, (kTileHeight - left) * dim * sizeof(bf16));
  }

  TileRows at(int64_t tile) const {
    if (tile == whole_) return {last_, dim_ * 2};
    return {rows_ + tile * kTileHeight * stride_, stride_ * 2};
  }

 private:
  const bf16 *rows_ = nullptr, *last_ = nullptr;
  int64_t stride_ = 0, dim_ = 0, whole_ = 0;
};

// A tile is 16 channels of 32 keys, of kKeys at most. Past the last key there are zeros: what they
// meet there is zero, which a NaN would not leave so.
template <int64_t kKeys>
class ChannelTiles {
 public:
  static constexpr int64_t memory(int64_t dim) { return dim * kStride; }

  ChannelTiles() = default;
  ChannelTiles(const BFloatRows& x, int64_t count, int64_t dim, bf16* memory) : channels_(memory) {
    static constexpr bf16 kNothing[kLanes] = {};
    for (int64_t key = 0; key < count; key += kTileDepth) {
      for (int64_t d = 0; d < dim; d += kLanes) {
        const auto at = [&](int64_t k) { return k < count ? x.data + k * x.stride + d : kNothing; };
        F32 square[kLanes];
        for (int i = 0; i < kLanes; ++i)
          square[i] = zip_pairs(at(key + 2 * i), at(key + 2 * i + 1));
        transpose(square);
        for (int i = 0; i < kLanes; ++i)
          store(reinterpret_cast<float*>(memory + (d + i) * kStride + key), square[i]);
      }
    }
  }

  // From key `first` on, an even one.
  TileRows at(int64_t tile, int64_t first = 0) const {
    return {channels_ + tile * kTileHeight * kStride + first, kStride * 2};
  }

 private:
  // Channels are so far apart that those of a tile do not crowd each other out of the cache.
  static constexpr int64_t kStride = kKeys + kTileDepth;

  const bf16* channels_ = nullptr;
};

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
