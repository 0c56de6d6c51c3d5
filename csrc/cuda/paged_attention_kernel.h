// Paged attention on tensor cores: softmax(q k^T) v of one tile of query rows and one part of a
// request's keys, for one KV head.
//
// Bytes. Decode reads every key and value once, 4 D bytes a token and KV head in 16 bits, and does
// 4 D FLOPs with them for each of at most 16 rows: 16 FLOPs a byte, where an H100 has 295. So only
// the memory counts: stages of 32 KB (16 KB of bytes) fill 64 KB a block, all but one of them in
// flight, three blocks on an SM of sm_90 (168 registers a thread; 68 KB of 228), two on sm_80. That
// is 96 KB in flight on an SM, where 3.35 TB/s times 0.7 us ask for 18. Heads of a GQA group share
// a tile, so that a key is read once for all of them. A page costs one 4-byte read of the table a
// row and copy of 16 bytes, a tile ahead of it; a page may be as small as one token.
//
// Decode (kRowWarps = 1): 16 rows, and warps that take 16 keys of each tile, joined at the end.
// Prefill (kKeyWarps = 1): 64 rows, 16 a warp, that all see the same keys: each byte from memory
// serves 64 rows and each from shared memory 16, which is where its speed ends (128 bytes a clock
// for 2,048 FLOPs a clock: the tensor cores of sm_80, half of those of sm_90). Its out rows and
// scores take 195 to 255 registers, two blocks an SM.
//
// int8 and e4m3 pages are half the bytes: they go to shared memory as they are, ldmatrix takes 16
// bits of them for an element, and they are widened in registers, three instructions an element.
// The key's scale multiplies the column of scores. The value's multiplies the probability, before
// it is rounded to bf16; in float16 such a product may underflow, and the scale goes to the value.
//
// A value that is NaN or infinite reaches all rows of the item that meets it, also those that a
// mask keeps from seeing its key.
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
    constexpr int kElements = 16 / sizeof(Element), kOfRow = kDim / kElements;
    const int swap = kOfRow >= 8 ? row & 7 : row >> 1 & 3;
    return row * kDim + ((column / kElements) ^ swap) * kElements + column % kElements;
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

// The query rows of an item, turned, in shared memory.
template <typename Tile>
AFNEXT_DEVICE void load_queries(const PagedAttentionParams& p, const PagedRows& rows,
                                typename Tile::T* shared) {
  using T = typename Tile::T;
  constexpr int kPairs = Tile::kDim / 2;
  for (int i = threadIdx.x; i < Tile::kRows * kPairs; i += Tile::kThreads) {
    const int row = i / kPairs, pair = i % kPairs;
    const RotatedPair at(pair, p.half, p.interleaved);
    float a = 0.0f, b = 0.0f;
    if (row < rows.count) {
      const int token = rows.token(row);
      const T* q = static_cast<const T*>(p.q) + token * p.q_token + rows.q_head(row) * p.q_head;
      if (at.first < p.pages.dim) a = arch::to_float(q[at.first]);
      if (at.second < p.pages.dim) b = arch::to_float(q[at.second]);
      if (pair < p.half) turn(sincos_of(p.times[token], p.inv_freq[pair]), &a, &b);
    }
    shared[Tile::template place<T>(row, Tile::q_column(at.first))] = arch::rounded<T>(a);
    shared[Tile::template place<T>(row, Tile::q_column(at.second))] = arch::rounded<T>(b);
  }
}

// Brings tiles of keys and values from pages to stages.
template <typename Tile>
class KeyStream {
 public:
  AFNEXT_DEVICE KeyStream(const PagedAttentionParams& p, const PagedItem& item, int head)
      : p_(p), item_(item), head_(head) {}

  // Looks the pages of a tile up.
  AFNEXT_DEVICE void find(int tile) {
    first_ = item_.begin + tile * Tile::kKeys;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) pages_[i] = page(row_of(i));
    if constexpr (Tile::kBytes) scale_page_ = page(threadIdx.x % Tile::kKeys);
  }
  // Begins to copy the tile that was looked up last.
  AFNEXT_DEVICE void copy(typename Tile::Stage& stage) const {
    using Page = typename Tile::Page;
    const int chunk = threadIdx.x % Tile::kChunks;
    const bool inside = chunk * Tile::kChunk < p_.pages.dim;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = row_of(i), bytes = inside && pages_[i] >= 0 ? 16 : 0;
      const int64_t from = bytes > 0 ? p_.pages.row(pages_[i], head_, first_ + row) * p_.pages.dim +
                                           chunk * Tile::kChunk
                                     : 0;
      const int to = Tile::template place<Page>(row, chunk * Tile::kChunk);
      arch::cp_async<16>(stage.k + to, static_cast<const Page*>(p_.k_pages) + from, bytes);
      arch::cp_async<16>(stage.v + to, static_cast<const Page*>(p_.v_pages) + from, bytes);
    }
    if (Tile::kBytes && threadIdx.x < 2 * Tile::kKeys) {
      const int key = threadIdx.x % Tile::kKeys, bytes = scale_page_ >= 0 ? 4 : 0;
      const int64_t from = bytes > 0 ? p_.pages.row(scale_page_, head_, first_ + key) : 0;
      const bool of_keys = threadIdx.x < Tile::kKeys;
      arch::cp_async<4>((of_keys ? stage.k_scales : stage.v_scales) + key,
                        (of_keys ? p_.k_scales : p_.v_scales) + from, bytes);
    }
  }

 private:
  static constexpr int kCopies = Tile::kKeys * Tile::kChunks / Tile::kThreads;
  static_assert(Tile::kThreads % Tile::kChunks == 0 && Tile::kThreads >= 2 * Tile::kKeys);

  AFNEXT_DEVICE static int row_of(int i) {
    return (threadIdx.x + i * Tile::kThreads) / Tile::kChunks;
  }
  AFNEXT_DEVICE int page(int row) const {
    const int key = first_ + row;
    return key < item_.end ? p_.pages.page(item_.pages, key, item_.request) : -1;
  }

  const PagedAttentionParams& p_;
  const PagedItem& item_;
  int head_, first_ = 0;
  int pages_[kCopies], scale_page_ = -1;
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

// A warp's 16 rows: the softmax so far, of rows r and r + 8 in a lane, and its sum of values.
template <typename Tile>
class WarpRows {
 public:
  AFNEXT_DEVICE WarpRows(const PagedRows& rows, int first) {
    const int lane = threadIdx.x % arch::kWarp;
    const int past = rows.count - first;  // rows of this warp, or more
    some_ = past > 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = lane / 4 + 8 * h;
      low_[h] = row < past ? rows.low(first + row) : 0;
      high_[h] = row < past ? rows.high(first + row) : 0;
    }
    if (some_) {
      const int last = first + (past < 16 ? past : 16) - 1;
      any_low_ = rows.low(first);
      all_low_ = rows.low(last);
      all_high_ = rows.high(first);
      any_high_ = rows.high(last);
    }
  }

  AFNEXT_DEVICE void attend(const PagedAttentionParams& p, const typename Tile::T* q,
                            const typename Tile::Stage& stage, int tile_key, int warp_key) {
    const int first = tile_key + warp_key, end = first + Tile::kWarpKeys;
    if (!some_ || end <= any_low_ || first >= any_high_) return;
    float scores[kProducts][4] = {};
    multiply_keys(q, stage, warp_key, scores);
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < kProducts; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = warp_key + 8 * n + column + i % 2;
        scores[n][i] *= Tile::kBytes ? p.scale * stage.k_scales[key] : p.scale;
      }
    }
    if (first < all_low_ || end > all_high_) {
#pragma unroll
      for (int n = 0; n < kProducts; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = first + 8 * n + column + i % 2;
          if (key < low_[i / 2] || key >= high_[i / 2]) scores[n][i] = -INFINITY;
        }
      }
    }
    soften(scores);
    multiply_values(stage, warp_key, scores);
  }

  // Sums, tops and values to shared memory, where the warps that share these rows are joined.
  AFNEXT_DEVICE void store(typename Tile::Shared& shared, int row_warp, int key_warp) {
    const int lane = threadIdx.x % arch::kWarp, row = 16 * row_warp + lane / 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float sum = arch::sum_lanes<4>(sum_[h]);
      if (lane % 4 == 0) {
        shared.top[key_warp][row + 8 * h] = top_[h];
        shared.sum[key_warp][row + 8 * h] = sum;
      }
      float* out = shared.out + (key_warp * Tile::kRows + row + 8 * h) * Tile::kSumStride;
#pragma unroll
      for (int n = 0; n < kOutProducts; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          out[Tile::out_channel(n, lane % 4 * 2 + i)] = out_[n][2 * h + i];
        }
      }
    }
  }

 private:
  static constexpr int kProducts = Tile::kWarpKeys / 8, kOutProducts = Tile::kDim / 8;

  AFNEXT_DEVICE static void multiply_keys(const typename Tile::T* q,
                                          const typename Tile::Stage& stage, int warp_key,
                                          float (&scores)[kProducts][4]) {
    using T = typename Tile::T;
    const int lane = threadIdx.x % arch::kWarp;
#pragma unroll 4
    for (int step = 0; step < Tile::kDim / 16; ++step) {
      uint32_t a[4];
      arch::ldmatrix(a, q + Tile::template place<T>(lane % 16, 16 * step + lane / 16 * 8));
#pragma unroll
      for (int n = 0; n < kProducts; n += 2) {
        uint32_t b[2][2];
        load_keys<Tile>(stage, warp_key + 8 * n, step, b);
        arch::mma_sync(scores[n], a, b[0], T{});
        arch::mma_sync(scores[n + 1], a, b[1], T{});
      }
    }
  }

  // Scores to probabilities against the largest so far; what is known is put on its footing.
  AFNEXT_DEVICE void soften(float (&scores)[kProducts][4]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = top_[h];
#pragma unroll
      for (int n = 0; n < kProducts; ++n) {
        top = fmaxf(top, fmaxf(scores[n][2 * h], scores[n][2 * h + 1]));
      }
      top = arch::max_lanes<4>(top);
      const float footing = top == -INFINITY ? 0.0f : top;
      const float factor = arch::exp2_approx(top_[h] - footing);
      top_[h] = top;
      sum_[h] *= factor;
#pragma unroll
      for (int n = 0; n < kProducts; ++n) {
#pragma unroll
        for (int i = 2 * h; i < 2 * h + 2; ++i) {
          scores[n][i] = arch::exp2_approx(scores[n][i] - footing);
          sum_[h] += scores[n][i];
        }
      }
#pragma unroll
      for (int n = 0; n < kOutProducts; ++n) {
        out_[n][2 * h] *= factor;
        out_[n][2 * h + 1] *= factor;
      }
    }
  }

  AFNEXT_DEVICE void multiply_values(const typename Tile::Stage& stage, int warp_key,
                                     const float (&p)[kProducts][4]) {
    using T = typename Tile::T;
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < kProducts; n += 2) {
      const int first = warp_key + 8 * n;
      float scales[4] = {1.0f, 1.0f, 1.0f, 1.0f}, weights[2][4];
      if constexpr (Tile::kBytes) {
#pragma unroll
        for (int i = 0; i < 4; ++i) scales[i] = stage.v_scales[first + column + i % 2 + i / 2 * 8];
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float weight = p[n + i / 4][i % 4];
        // Not seen, or nothing beside the others: no scale brings it back.
        const bool scaled = Tile::kBytes && !Tile::kScaleValues && weight != 0.0f;
        weights[i / 4][i % 4] = scaled ? weight * scales[i / 4 * 2 + i % 2] : weight;
      }
      const uint32_t a[4] = {arch::pack(weights[0][0], weights[0][1], T{}),
                             arch::pack(weights[0][2], weights[0][3], T{}),
                             arch::pack(weights[1][0], weights[1][1], T{}),
                             arch::pack(weights[1][2], weights[1][3], T{})};
#pragma unroll
      for (int step = 0; step < Tile::kDim / 16; ++step) {
        uint32_t b[2][2];
        load_values<Tile>(stage, first, step, scales, b);
        arch::mma_sync(out_[2 * step], a, b[0], T{});
        arch::mma_sync(out_[2 * step + 1], a, b[1], T{});
      }
    }
  }

  bool some_;
  int low_[2], high_[2];
  // What any of the rows sees, what all see.
  int any_low_ = 0, any_high_ = 0, all_low_ = 0, all_high_ = 0;
  float top_[2] = {-INFINITY, -INFINITY}, sum_[2] = {};
  float out_[kOutProducts][4] = {};
};

// Joins the warps that share rows and writes the item's result.
template <typename Tile>
AFNEXT_DEVICE void write_rows(const PagedAttentionParams& p, const PagedItem& item, int head,
                              const PagedRows& rows, const typename Tile::Shared& shared) {
  using T = typename Tile::T;
  constexpr int kVector = 4, kVectors = Tile::kDim / kVector;
  for (int i = threadIdx.x; i < rows.count * kVectors; i += Tile::kThreads) {
    const int row = i / kVectors, channel = i % kVectors * kVector;
    if (channel >= p.pages.dim) continue;
    float top = -INFINITY, sum = 0.0f, values[kVector] = {};
#pragma unroll
    for (int w = 0; w < Tile::kKeyWarps; ++w) top = fmaxf(top, shared.top[w][row]);
    const float footing = top == -INFINITY ? 0.0f : top;
#pragma unroll
    for (int w = 0; w < Tile::kKeyWarps; ++w) {
      const float weight = arch::exp2_approx(shared.top[w][row] - footing);
      const float* out = shared.out + (w * Tile::kRows + row) * Tile::kSumStride + channel;
      sum += weight * shared.sum[w][row];
#pragma unroll
      for (int j = 0; j < kVector; ++j) values[j] += weight * out[j];
    }
    const float inverse = 1.0f / sum;
#pragma unroll
    for (float& value : values) value = sum == 0.0f ? 0.0f : value * inverse;
    const float lse = log_of(top, sum);
    const int token = rows.token(row), q_head = rows.q_head(row);
    if (item.partial >= 0) {
      const int64_t at =
          item.partial + static_cast<int64_t>(head) * item.partial_heads + item.first_row + row;
      *reinterpret_cast<float4*>(p.partial_out + at * p.pages.dim + channel) = {
          values[0], values[1], values[2], values[3]};
      if (channel == 0) p.partial_lse[at] = lse;
      continue;
    }
    const int q_heads = p.pages.kv_heads * p.group;
    T* out = static_cast<T*>(p.out) +
             (static_cast<int64_t>(token) * q_heads + q_head) * p.pages.dim + channel;
    *reinterpret_cast<uint2*>(out) = {arch::pack(values[0], values[1], T{}),
                                      arch::pack(values[2], values[3], T{})};
    if (channel == 0) p.lse[static_cast<int64_t>(q_head) * p.query_tokens + token] = lse;
  }
}

template <typename Tile>
AFNEXT_DEVICE void attend(const PagedAttentionParams& p, const PagedItem& item, int head) {
  auto& shared = arch::shared_memory<typename Tile::Shared>();
  const int warp = threadIdx.x / arch::kWarp;
  const int row_warp = warp % Tile::kRowWarps, key_warp = warp / Tile::kRowWarps;
  const PagedRows rows(p, item, head, Tile::kRows);
  const int tiles = (item.end - item.begin + Tile::kKeys - 1) / Tile::kKeys;
  KeyStream<Tile> keys(p, item, head);
  keys.find(0);
#pragma unroll
  for (int i = 0; i < Tile::kStages - 1; ++i) {
    if (i < tiles) {
      keys.copy(shared.stages[i]);
      keys.find(i + 1);
    }
    arch::cp_async_commit_group();
  }
  load_queries<Tile>(p, rows, shared.q);
  WarpRows<Tile> softmax(rows, 16 * row_warp);
  int stage = 0;
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
    arch::cp_async_wait_group<Tile::kStages - 2>();
    __syncthreads();  // the tile is there for all, and all are done with the one before
    const int ahead = tile + Tile::kStages - 1;
    if (ahead < tiles) {
      keys.copy(shared.stages[stage == 0 ? Tile::kStages - 1 : stage - 1]);
      keys.find(ahead + 1);
    }
    arch::cp_async_commit_group();
    softmax.attend(p, shared.q + 16 * row_warp * Tile::kDim, shared.stages[stage],
                   item.begin + tile * Tile::kKeys, key_warp * Tile::kWarpKeys);
    stage = stage == Tile::kStages - 1 ? 0 : stage + 1;
  }
  __syncthreads();
  softmax.store(shared, row_warp, key_warp);
  __syncthreads();
  write_rows<Tile>(p, item, head, rows, shared);
  __syncthreads();
}

// Blocks take items in turn: the grid has one shape, whatever the batch. Heads lie side by side in
// a page, and so do the blocks that read it.
template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    paged_attention_kernel(const __grid_constant__ PagedAttentionParams p) {
  const auto* header = reinterpret_cast<const PagedHeader*>(p.pages.words);
  const auto* items = reinterpret_cast<const PagedItem*>(header + 1);
  constexpr bool kSmall = Tile::kRows == kSmallRows;
  const int first = kSmall ? 0 : header->small, count = kSmall ? header->small : header->large;
#pragma unroll 1
  for (int work = blockIdx.x; work < count * p.pages.kv_heads; work += gridDim.x) {
    const PagedItem item = items[first + work / p.pages.kv_heads];
    attend<Tile>(p, item, work % p.pages.kv_heads);
  }
}

}  // namespace afnext::cuda
