// Attention over pages by the online softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et
// al. 2022). Lanes lie along the head dimension, so that a few query rows suffice to fill them: the
// heads of a group, which share every load of a key and a value.
#include "cpu/paged_attention.h"

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd/dot.h"
#include "cpu/simd/rotate_row.h"
#include "cpu/simd/rows.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int kGroupRows = kLanes == 16 ? 8 : 4;  // rows whose sums stay in registers
constexpr int kKeyTile = 2;                       // keys that share a load of the queries
constexpr int64_t kChunkKeys = 32;                // keys, values and what comes next fit L1
constexpr int64_t kMaxDim = 256;
static_assert(kPartKeys % kChunkKeys == 0 && kChunkKeys % kLanes == 0);

// A register of T holds kParts vectors of float32: the even and the odd elements of bf16.
template <typename T>
constexpr int kParts = 4 / static_cast<int>(sizeof(T));

template <typename T>
AFNEXT_INLINE void split(F32 raw, F32 (&parts)[kParts<T>]) {
  if constexpr (kParts<T> == 1) {
    parts[0] = raw;
  } else {
    parts[0] = low_of_pairs(raw), parts[1] = high_of_pairs(raw);
  }
}

template <typename T>
AFNEXT_INLINE int64_t padded(int64_t dim) {
  return (dim + kPerRegister<T> - 1) / kPerRegister<T> * kPerRegister<T>;
}

// Up to kGroupRows rows on their way through the keys. `queries` and `out` are
// [kGroupRows, padded(dim)], each register's elements in the order of split().
struct Group {
  float *queries, *out;
  int64_t row;
  int rows;
  alignas(64) float peak[kLanes], total[kLanes];
};

// The keys or values of a chunk, an address each: pages of any size read alike.
struct Chunk {
  int64_t first, count;
  const void *keys[kChunkKeys], *values[kChunkKeys];
};

// Fetches rows that are needed soon, a line at a time, between the sums that hide it.
struct Prefetch {
  const void* const* rows;
  int64_t count, bytes, offset = 0;

  AFNEXT_INLINE_METHOD void line() {
    if (count == 0) return;
    __builtin_prefetch(static_cast<const char*>(*rows) + offset);
    offset += 64;
    if (offset >= bytes) offset = 0, ++rows, --count;
  }
};

template <typename T>
AFNEXT_INLINE F32 load_at(const void* row, int64_t d, int64_t dim) {
  const T* p = static_cast<const T*>(row) + d;
  return d + kPerRegister<T> <= dim ? load_raw(p) : load_raw_n(p, static_cast<int>(dim - d));
}

// Scores of H rows with W keys.
template <int H, int W, typename T>
AFNEXT_INLINE void score(const Group& g, const void* const* keys, int64_t dim, Prefetch& next,
                         float* scores) {
  const int64_t width = padded<T>(dim);
  F32 sums[H][W] = {};
  for (int64_t d = 0; d < width; d += kPerRegister<T>) {
    F32 parts[W][kParts<T>];
    for (int w = 0; w < W; ++w) {
      split<T>(load_at<T>(keys[w], d, dim), parts[w]);
      if (d * sizeof(T) % 64 == 0) next.line();
    }
    for (int h = 0; h < H; ++h) {
      for (int p = 0; p < kParts<T>; ++p) {
        const F32 q = load(g.queries + h * width + d + p * kLanes);
        for (int w = 0; w < W; ++w) sums[h][w] = fma(q, parts[w][p], sums[h][w]);
      }
    }
  }
  float lanes[H * W];
  sum_all<H * W>(&sums[0][0], lanes);
  for (int h = 0; h < H; ++h) {
    for (int w = 0; w < W; ++w) scores[h * kChunkKeys + w] = lanes[h * W + w];
  }
}

// Scores [kGroupRows, kChunkKeys] become weights relative to the new peak of their row; `shrink`
// brings what was summed before to that peak.
template <int H>
AFNEXT_INLINE void softmax(Group& g, float* scores, float* shrink) {
  const F32 none = broadcast(-__builtin_inff());
  F32 peaks[kGroupRows], totals[kGroupRows];
  for (int h = 0; h < kGroupRows; ++h) {
    peaks[h] = none;
    totals[h] = F32{};
  }
  for (int h = 0; h < H; ++h) {
    for (int64_t j = 0; j < kChunkKeys; j += kLanes)
      peaks[h] = max(peaks[h], load(scores + h * kChunkKeys + j));
  }
  const F32 before = load(g.peak), peak = max(before, largest_each(peaks));
  // Where nothing was seen yet all scores are -inf: any finite peak gives weights of zero.
  const F32 finite = select(peak == none, F32{}, peak);
  float base[kLanes];
  store(base, finite);
  for (int h = 0; h < H; ++h) {
    for (int64_t j = 0; j < kChunkKeys; j += kLanes) {
      float* s = scores + h * kChunkKeys + j;
      const F32 weight = exp_nonpositive(load(s) - base[h]);
      store(s, weight);
      totals[h] += weight;
    }
  }
  const F32 factor = exp_nonpositive(before - finite);
  store(shrink, factor);
  store(g.peak, peak);
  store(g.total, fma(load(g.total), factor, sum_each(totals)));
}

// out = out * shrink + weights @ values, a register of the head dimension at a time.
template <int H, typename T>
AFNEXT_INLINE void add_values(Group& g, const Chunk& chunk, const float* weights,
                              const float* shrink, int64_t dim, Prefetch& next) {
  const int64_t width = padded<T>(dim);
  for (int64_t d = 0; d < width; d += kPerRegister<T>) {
    F32 sums[H][kParts<T>];
    for (int h = 0; h < H; ++h) {
      for (int p = 0; p < kParts<T>; ++p)
        sums[h][p] = load(g.out + h * width + d + p * kLanes) * shrink[h];
    }
    const bool fetch = d * sizeof(T) % 64 == 0;
    const auto run = [&](auto load_value) __attribute__((always_inline)) {
      for (int64_t j = 0; j < chunk.count; ++j) {
        if (fetch) next.line();
        F32 parts[kParts<T>];
        split<T>(load_value(static_cast<const T*>(chunk.values[j]) + d), parts);
        for (int h = 0; h < H; ++h) {
          const F32 weight = broadcast(weights[h * kChunkKeys + j]);
          for (int p = 0; p < kParts<T>; ++p) sums[h][p] = fma(weight, parts[p], sums[h][p]);
        }
      }
    };
    if (d + kPerRegister<T> <= dim) {
      run([](const T* v) __attribute__((always_inline)) { return load_raw(v); });
    } else {
      const int n = static_cast<int>(dim - d);
      run([n](const T* v) __attribute__((always_inline)) { return load_raw_n(v, n); });
    }
    for (int h = 0; h < H; ++h) {
      for (int p = 0; p < kParts<T>; ++p) store(g.out + h * width + d + p * kLanes, sums[h][p]);
    }
  }
}

// Keys that a row does not see get a score of -inf.
AFNEXT_INLINE void mask(const Group& g, const Band& band, int64_t heads, const Chunk& chunk,
                        float* scores) {
  for (int h = 0; h < g.rows; ++h) {
    const int64_t query = (g.row + h) / heads;
    const int64_t first = band.first(query) - chunk.first, end = band.end(query) - chunk.first;
    for (int64_t j = 0; j < chunk.count; ++j) {
      if (j < first || j >= end) scores[h * kChunkKeys + j] = -__builtin_inff();
    }
  }
}

template <int H, typename T>
void meet(const PagedAttentionArgs& a, const Band& band, Group& g, const Chunk& chunk,
          Prefetch& values, Prefetch& next) {
  alignas(64) float scores[kGroupRows * kChunkKeys], shrink[kLanes];
  int64_t j = 0;
  for (; j + kKeyTile <= chunk.count; j += kKeyTile)
    score<H, kKeyTile, T>(g, chunk.keys + j, a.dim, values, scores + j);
  for (; j < chunk.count; ++j) score<H, 1, T>(g, chunk.keys + j, a.dim, values, scores + j);
  for (int h = 0; h < H; ++h) {
    for (int64_t rest = chunk.count; rest < kChunkKeys; ++rest)
      scores[h * kChunkKeys + rest] = -__builtin_inff();
  }
  const int64_t top = g.row / a.group, bottom = (g.row + H - 1) / a.group;
  if (band.first(bottom) > chunk.first || band.end(top) < chunk.first + chunk.count)
    mask(g, band, a.group, chunk, scores);
  softmax<H>(g, scores, shrink);
  add_values<H, T>(g, chunk, scores, shrink, a.dim, next);
}

// meet<rows>, for rows known at run time.
template <int H, typename T>
AFNEXT_INLINE void meet_of(const PagedAttentionArgs& a, const Band& band, Group& g,
                           const Chunk& chunk, Prefetch& values, Prefetch& next) {
  if constexpr (H > 1) {
    if (g.rows != H) return meet_of<H - 1, T>(a, band, g, chunk, values, next);
  }
  meet<H, T>(a, band, g, chunk, values, next);
}

// Rows of one item: where they are in q, out and the partial results.
struct Rows {
  const PagedAttentionArgs& a;
  const PagedItem& item;
  const PagedRequest& request;

  int64_t token(int64_t row) const { return request.first_query + row / a.group; }
  int64_t head(int64_t row) const { return item.kv_head * a.group + row % a.group; }
  int64_t partial(int64_t row) const {
    const int64_t rows = request.band.queries * a.group;
    return request.first_partial + (item.kv_head * request.parts + item.part) * rows + row;
  }
};

// The query of `row`, turned and scaled, in the order of split().
template <typename T>
void load_query(const Rows& rows, int64_t row, int64_t& turned, float* cos, float* sin,
                float* query) {
  const PagedAttentionArgs& a = rows.a;
  const int64_t token = rows.token(row), width = padded<T>(a.dim);
  alignas(64) float x[kMaxDim + 2 * kLanes] = {};
  load_row(static_cast<const T*>(a.q.data) + token * a.q.token + rows.head(row) * a.q.head, a.dim,
           x);
  if (a.half > 0) {
    if (turned != token) sincos_row(a.times[token], a.inv_freq, a.half, cos, sin);
    turned = token;
    rotate_row(x, cos, sin, a.half, a.interleaved, x);
  }
  for (int64_t d = 0; d < width; d += kPerRegister<T>) {
    if constexpr (kParts<T> == 1) {
      store(query + d, load(x + d) * a.scale);
    } else {
      const F32 low = load(x + d) * a.scale, high = load(x + d + kLanes) * a.scale;
      store(query + d, evens(low, high));
      store(query + d + kLanes, odds(low, high));
    }
  }
}

template <typename T>
void write(const Rows& rows, const Group& g) {
  const PagedAttentionArgs& a = rows.a;
  const int64_t width = padded<T>(a.dim), heads = a.kv_heads * a.group;
  alignas(64) float x[kMaxDim + 2 * kLanes];
  for (int h = 0; h < g.rows; ++h) {
    const float total = g.total[h], share = total == 0.0f ? 0.0f : 1.0f / total;
    const float lse = total == 0.0f ? -__builtin_inff() : g.peak[h] + __builtin_logf(total);
    for (int64_t d = 0; d < width; d += kPerRegister<T>) {
      const float* out = g.out + h * width + d;
      if constexpr (kParts<T> == 1) {
        store(x + d, load(out) * share);
      } else {
        const F32 even = load(out) * share, odd = load(out + kLanes) * share;
        store(x + d, zip_low(even, odd));
        store(x + d + kLanes, zip_high(even, odd));
      }
    }
    const int64_t row = g.row + h;
    if (rows.request.parts > 1) {
      store_row(a.partial_out + rows.partial(row) * a.dim, x, a.dim);
      a.partial_lse[rows.partial(row)] = lse;
    } else {
      const int64_t token = rows.token(row), head = rows.head(row);
      store_row(static_cast<T*>(a.out) + (token * heads + head) * a.dim, x, a.dim);
      a.lse[head * a.query_tokens + token] = lse;
    }
  }
}

template <typename T>
AFNEXT_INLINE void look_up(const PagedAttentionArgs& a, const PagedItem& item, int64_t first,
                           int64_t end, Chunk& chunk) {
  chunk.first = first;
  chunk.count = end - first < kChunkKeys ? end - first : kChunkKeys;
  if (chunk.count <= 0) return void(chunk.count = 0);
  const int32_t* pages = a.requests[item.request].pages;
  int64_t page = first / a.slots, slot = first % a.slots;
  for (int64_t j = 0; j < chunk.count; ++j) {
    const int64_t row = ((pages[page] * a.kv_heads + item.kv_head) * a.slots + slot) * a.dim;
    chunk.keys[j] = static_cast<const T*>(a.k_pages) + row;
    chunk.values[j] = static_cast<const T*>(a.v_pages) + row;
    if (++slot == a.slots) slot = 0, ++page;
  }
}

template <typename T>
void attend(const PagedAttentionArgs& a, const PagedItem& item) {
  constexpr int64_t kMaxGroups = kPagedItemRows / kGroupRows;
  const Rows rows{a, item, a.requests[item.request]};
  const Band& band = rows.request.band;
  const int64_t width = padded<T>(a.dim), state = kGroupRows * width;
  const int64_t count = (item.end_row - item.first_row + kGroupRows - 1) / kGroupRows;

  float* memory = scratch<float>(0, 2 * count * state);
  alignas(64) float cos[kMaxDim / 2 + kLanes], sin[kMaxDim / 2 + kLanes];
  Group groups[kMaxGroups];
  int64_t turned = -1;
  for (int64_t i = 0; i < count; ++i) {
    Group& g = groups[i];
    g.row = item.first_row + i * kGroupRows;
    g.rows =
        static_cast<int>(item.end_row - g.row < kGroupRows ? item.end_row - g.row : kGroupRows);
    g.queries = memory + 2 * i * state;
    g.out = g.queries + state;
    for (int h = 0; h < g.rows; ++h)
      load_query<T>(rows, g.row + h, turned, cos, sin, g.queries + h * width);
    __builtin_memset(g.out, 0, state * sizeof(float));
    store(g.peak, broadcast(-__builtin_inff()));
    store(g.total, F32{});
  }

  // Chunks begin at multiples of kChunkKeys, so that a row's result does not depend on its
  // neighbours.
  Chunk chunks[2];
  const int64_t bytes = a.dim * static_cast<int64_t>(sizeof(T));
  int64_t key = item.first_key / kChunkKeys * kChunkKeys;
  look_up<T>(a, item, key, item.end_key, chunks[0]);
  for (int turn = 0; key < item.end_key; key += kChunkKeys, turn ^= 1) {
    const Chunk &chunk = chunks[turn], &coming = chunks[turn ^ 1];
    look_up<T>(a, item, key + kChunkKeys, item.end_key, chunks[turn ^ 1]);
    Prefetch values{chunk.values, chunk.count, bytes}, next{coming.keys, coming.count, bytes};
    for (int64_t i = 0; i < count; ++i) {
      Group& g = groups[i];
      if (band.first(g.row / a.group) >= key + chunk.count) continue;
      if (band.end((g.row + g.rows - 1) / a.group) <= key) continue;
      meet_of<kGroupRows, T>(a, band, g, chunk, values, next);
    }
  }
  for (int64_t i = 0; i < count; ++i) write<T>(rows, groups[i]);
}

// One row of a request whose keys came in parts.
template <typename T>
void merge_row(const PagedAttentionArgs& a, const PagedRequest& request, int64_t head,
               int64_t row) {
  const int64_t stride = request.band.queries * a.group;
  const int64_t kv_head = head / a.group;
  const int64_t first = request.first_partial + kv_head * request.parts * stride + row;
  float peak = -__builtin_inff();
  for (int64_t p = 0; p < request.parts; ++p) {
    const float lse = a.partial_lse[first + p * stride];
    peak = lse > peak ? lse : peak;
  }
  const float base = peak == -__builtin_inff() ? 0.0f : peak;
  alignas(64) float x[kMaxDim + kLanes] = {};
  float total = 0.0f;
  for (int64_t p = 0; p < request.parts; ++p) {
    const float weight = __builtin_expf(a.partial_lse[first + p * stride] - base);
    const float* part = a.partial_out + (first + p * stride) * a.dim;
    total += weight;
    for (int64_t d = 0; d < a.dim; ++d) x[d] += weight * part[d];
  }
  const float share = total == 0.0f ? 0.0f : 1.0f / total;
  for (int64_t d = 0; d < a.dim; ++d) x[d] *= share;
  const int64_t token = request.first_query + row / a.group;
  store_row(static_cast<T*>(a.out) + (token * a.kv_heads * a.group + head) * a.dim, x, a.dim);
  a.lse[head * a.query_tokens + token] =
      total == 0.0f ? -__builtin_inff() : base + __builtin_logf(total);
}

template <typename T>
void run(const PagedAttentionArgs& a) {
  parallel_for(a.item_count, a.items_per_thread, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) attend<T>(a, a.items[i]);
  });
  const int64_t heads = a.kv_heads * a.group;
  parallel_for(a.request_count * heads, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const PagedRequest& request = a.requests[i / heads];
      const int64_t head = i % heads;
      for (int64_t query = 0; request.parts > 1 && query < request.band.queries; ++query)
        merge_row<T>(a, request, head, query * a.group + head % a.group);
    }
  });
}

}  // namespace

void paged_attention(const PagedAttentionArgs& args) {
  args.dtype == DType::f32 ? run<float>(args) : run<bf16>(args);
}

AFNEXT_REGISTER(paged_attention, PagedAttentionArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
