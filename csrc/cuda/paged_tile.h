// Tiles of paged attention: their shapes, how queries, keys and values come to shared memory, and
// from there to the tensor cores.
#pragma once

#include "cuda/arch/copy.h"
#include "cuda/arch/matrix.h"
#include "cuda/paged_params.h"

namespace afnext::cuda {

// Page is T, int8_t or e4m3. kDim: the head dim, rounded up; what is past it reads as zero.
template <typename T_, typename Page_, int kDim_, int kRowWarps_, int kKeyWarps_>
struct PagedTile {
  using T = T_;
  using Page = Page_;
  static constexpr bool kBytes = sizeof(Page) == 1;
  static constexpr bool kScaleValues = kBytes && std::is_same_v<T, f16>;
  static constexpr int kDim = kDim_, kRowWarps = kRowWarps_, kKeyWarps = kKeyWarps_;
  static constexpr int kRows = 16 * kRowWarps;
  static constexpr int kThreads = arch::kWarp * kRowWarps * kKeyWarps;
  // Keys of a warp in a tile, and of the tile: 32 KB of keys and values in 16 bits (16 KB where 256
  // channels leave no registers for more scores).
  static constexpr int kWarpKeys = kKeyWarps > 1 || kDim > 192 ? 16 : kDim > 128 ? 32 : 64;
  static constexpr int kKeys = kKeyWarps * kWarpKeys;
  static constexpr int kChunk = 16 / sizeof(Page);  // elements of 16 bytes
  static constexpr int kChunks = kDim / kChunk;     // of a row
  static constexpr int kWanted = (64 << 10) / (2 * kKeys * kDim * static_cast<int>(sizeof(Page)));
  static constexpr int kStages = kWanted < 2 ? 2 : kWanted > 4 ? 4 : kWanted;
  static constexpr int kCopyRows = kKeys / (kRowWarps * kKeyWarps);  // of a tile, by a warp
  static constexpr bool kApart = kRowWarps == 1;  // a warp reads what it copies, and nothing else

  // Of an SM, as registers allow: 168 a thread in decode, 255 in prefill.
  static constexpr int kBlocks = kRowWarps == 1 && kDim <= 128 ? 3 : 2;

  struct Stage {
    alignas(128) Page k[kKeys * kDim], v[kKeys * kDim];
    float k_scales[kKeys], v_scales[kKeys];
  };
  static constexpr int kSumStride = kDim + 8;  // rows in other banks
  struct Shared {
    alignas(128) T q[kRows * kDim];
    union {
      Stage stages[kStages];
      float out[kKeyWarps * kRows * kSumStride];  // when all keys are done
    };
    float top[kKeyWarps][kRows], sum[kKeyWarps][kRows];
  };

  // Where element `column` of a row lies: 16-byte chunks are exchanged so that the eight rows of a
  // matrix are in different banks.
  template <typename Element>
  AFNEXT_DEVICE static int place(int row, int column) {
    constexpr int kElements = 16 / sizeof(Element);
    return row * kDim + ((column / kElements) ^ swap<Element>(row)) * kElements +
           column % kElements;
  }
  template <typename Element>
  AFNEXT_DEVICE static int swap(int row) {
    constexpr int kOfRow = kDim * static_cast<int>(sizeof(Element)) / 16;
    return kOfRow >= 8 ? row & 7 : row >> 1 & 3;
  }
  // Where a lane's four bytes of keys are taken for elements (2c, 2c + 1, 2c + 8, 2c + 9) of 16,
  // q's columns are exchanged likewise.
  AFNEXT_DEVICE static int q_column(int column) {
    if constexpr (!kBytes) return column;
    const int of_lane = column & 3;
    return (column & ~15) | (of_lane & 2) << 2 | (column & 12) >> 1 | (of_lane & 1);
  }
  // The channel of column `column` of the tile's output: a pair of bytes of a value goes to two
  // products.
  AFNEXT_DEVICE static int out_channel(int product, int column) {
    if constexpr (!kBytes) return 8 * product + column;
    return 16 * (product / 2) + 2 * column + product % 2;
  }
};

// The query rows of an item, turned, in shared memory. A thread has one pair of channels, so that
// the rows of a token turn by one sine and cosine; what it reads is asked for at once.
template <typename Tile>
AFNEXT_DEVICE void load_queries(const PagedAttentionParams& p, const PagedRows& rows,
                                typename Tile::T* shared) {
  using T = typename Tile::T;
  constexpr int kPairs = Tile::kDim / 2,
                kAtOnce = kPairs < Tile::kThreads ? kPairs : Tile::kThreads;
  static_assert(kPairs % kAtOnce == 0 && Tile::kThreads % kAtOnce == 0);
  for (int pair = threadIdx.x % kAtOnce; pair < kPairs; pair += kAtOnce) {
    const RotatedPair at(pair, p.half, p.interleaved);
    const bool turned = pair < p.half;
    const float inv_freq = turned ? p.inv_freq[pair] : 0.0f;
    int token_before = -1;
    SinCos by{0.0f, 1.0f};
#pragma unroll 2
    for (int row = threadIdx.x / kAtOnce; row < Tile::kRows; row += Tile::kThreads / kAtOnce) {
      float a = 0.0f, b = 0.0f;
      if (row < rows.count) {
        const int token = rows.token(row);
        const T* q = static_cast<const T*>(p.q) + token * p.q_token + rows.q_head(row) * p.q_head;
        if (at.first < p.pages.dim) a = arch::to_float(q[at.first]);
        if (at.second < p.pages.dim) b = arch::to_float(q[at.second]);
        if (turned) {
          if (token != token_before) by = sincos_of(p.times[token], inv_freq);
          token_before = token;
          turn(by, &a, &b);
        }
      }
      shared[Tile::template place<T>(row, Tile::q_column(at.first))] = arch::rounded<T>(a);
      shared[Tile::template place<T>(row, Tile::q_column(at.second))] = arch::rounded<T>(b);
    }
  }
}

// Brings a warp's rows of tiles from pages to stages. A lane looks the place of one row up, and
// tells it those who copy the row.
template <typename Tile>
class KeyStream {
 public:
  using Page = typename Tile::Page;

  AFNEXT_DEVICE KeyStream(const PagedAttentionParams& p, const PagedItem& item, int head)
      : p_(p),
        item_(item),
        head_(head),
        lane_(threadIdx.x % arch::kWarp),
        first_row_(threadIdx.x / arch::kWarp * Tile::kCopyRows),
        row_bytes_(p.pages.dim * static_cast<int>(sizeof(Page))),
        next_(item.begin + first_row_ + lane_ % Tile::kCopyRows) {
    const int column = lane_ % Tile::kChunks * Tile::kChunk;
    inside_ = column < p.pages.dim;
    k_ = static_cast<const Page*>(p.k_pages) + (inside_ ? column : 0);
    v_ = static_cast<const Page*>(p.v_pages) + (inside_ ? column : 0);
  }

  // Looks the rows of the next tile up.
  AFNEXT_DEVICE void find() {
    place_ = -1;
    if (next_ < item_.end) {
      const int page = p_.pages.page(item_.pages, next_, item_.request);
      if (page >= 0) place_ = static_cast<int>(p_.pages.row(page, head_, next_));
    }
    next_ += Tile::kKeys;
  }
  // Begins to copy the tile that was looked up last.
  AFNEXT_DEVICE void copy(typename Tile::Stage& stage) const {
    constexpr int kAtOnce = arch::kWarp / Tile::kChunks;  // rows
    static_assert(kAtOnce >= 1 && Tile::kCopyRows % kAtOnce == 0);
    const int row_of_lane = lane_ / Tile::kChunks;
    const int chunk = lane_ % Tile::kChunks ^ Tile::template swap<Page>(first_row_ + row_of_lane);
    Page *k = stage.k + (first_row_ + row_of_lane) * Tile::kDim,
         *v = stage.v + (first_row_ + row_of_lane) * Tile::kDim;
#pragma unroll
    for (int i = 0; i < Tile::kCopyRows; i += kAtOnce) {
      const int place = __shfl_sync(arch::kAllLanes, place_, i + row_of_lane);
      const int bytes = inside_ && place >= 0 ? 16 : 0;
      const int64_t from = static_cast<int64_t>(place > 0 ? place : 0) * row_bytes_;
      // No bit of i is one of the others': so the chunks' places differ by i's alone.
      const int to = i * Tile::kDim + (chunk ^ Tile::template swap<Page>(i)) * Tile::kChunk;
      arch::cp_async<16>(k + to, reinterpret_cast<const char*>(k_) + from, bytes);
      arch::cp_async<16>(v + to, reinterpret_cast<const char*>(v_) + from, bytes);
    }
    if (Tile::kBytes && lane_ < 2 * Tile::kCopyRows) {
      const bool of_keys = lane_ < Tile::kCopyRows;
      arch::cp_async<4>(
          (of_keys ? stage.k_scales : stage.v_scales) + first_row_ + lane_ % Tile::kCopyRows,
          (of_keys ? p_.k_scales : p_.v_scales) + (place_ > 0 ? place_ : 0), place_ < 0 ? 0 : 4);
    }
  }

 private:
  const PagedAttentionParams& p_;
  const PagedItem& item_;
  int head_, lane_, first_row_, row_bytes_;
  bool inside_;            // of the head dim: this lane's part of rows
  const Page *k_, *v_;     // that part of the first row of all
  int next_, place_ = -1;  // key of this lane's row, and the row of the pages where it lies
};

// Operands of two products for 16 keys: step `step` of 16 channels.
template <typename Tile>
AFNEXT_DEVICE void load_keys(const typename Tile::Stage& stage, int first_key, int step,
                             uint32_t (&b)[2][2]) {
  using T = typename Tile::T;
  using Page = typename Tile::Page;
  const int lane = threadIdx.x % arch::kWarp;
  if constexpr (Tile::kBytes) {
    uint32_t four[2];
    arch::ldmatrix(four, stage.k + Tile::template place<Page>(first_key + lane % 16, 16 * step));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 low = arch::pick<0, 1>(four[i], Page{}),
                   high = arch::pick<2, 3>(four[i], Page{});
      b[i][0] = arch::pack(low.x, low.y, T{});
      b[i][1] = arch::pack(high.x, high.y, T{});
    }
  } else {
    uint32_t all[4];
    const int row = first_key + lane / 16 * 8 + lane % 8, column = 16 * step + lane / 8 % 2 * 8;
    arch::ldmatrix(all, stage.k + Tile::template place<Page>(row, column));
    b[0][0] = all[0];
    b[0][1] = all[1];
    b[1][0] = all[2];
    b[1][1] = all[3];
  }
}

// Operands of two products for 16 keys: the 16 channels from 16 * step on. `scales` of this lane's
// keys 2c, 2c + 1, 2c + 8 and 2c + 9, where values take them.
template <typename Tile>
AFNEXT_DEVICE void load_values(const typename Tile::Stage& stage, int first_key, int step,
                               const float (&scales)[4], uint32_t (&b)[2][2]) {
  using T = typename Tile::T;
  using Page = typename Tile::Page;
  const int lane = threadIdx.x % arch::kWarp;
  if constexpr (Tile::kBytes) {
    uint32_t four[2];  // of two keys, two channels each
    arch::ldmatrix_transposed(
        four, stage.v + Tile::template place<Page>(first_key + lane % 16, 16 * step));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float2 even = arch::pick<0, 2>(four[i], Page{}), odd = arch::pick<1, 3>(four[i], Page{});
      if constexpr (Tile::kScaleValues) {
        even = {even.x * scales[2 * i], even.y * scales[2 * i + 1]};
        odd = {odd.x * scales[2 * i], odd.y * scales[2 * i + 1]};
      }
      b[0][i] = arch::pack(even.x, even.y, T{});
      b[1][i] = arch::pack(odd.x, odd.y, T{});
    }
  } else {
    uint32_t all[4];
    arch::ldmatrix_transposed(all, stage.v + Tile::template place<Page>(first_key + lane % 16,
                                                                        16 * step + lane / 16 * 8));
    b[0][0] = all[0];
    b[0][1] = all[1];
    b[1][0] = all[2];
    b[1][1] = all[3];
  }
}

}  // namespace afnext::cuda
