// Attention over pages by the online softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et
// al. 2022). Lanes lie along the head dimension, so that a few query rows suffice to fill them: the
// heads of a group, which share every load of a key and a value.
#include "cpu/paged_attention.h"

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd/pairs.h"
#include "cpu/simd/rotate_row.h"
#include "cpu/simd/rows.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int kGroupRows = kLanes == 16 ? 8 : 4;  // rows whose sums stay in registers
constexpr int64_t kChunkKeys = 32;                // keys, values and what comes next fit L1
constexpr int64_t kMaxDim = 256;
static_assert(kPartKeys % kChunkKeys == 0 && kChunkKeys % kLanes == 0);

// A register of T holds kParts vectors of float32: the even and the odd elements of bf16.
template <typename T>
constexpr int kParts = 4 / static_cast<int>(sizeof(T));

template <typename T>
AFNEXT_INLINE F32 part(F32 raw, int p) {
  if constexpr (kParts<T> == 1) return raw;
  return in_register(p == 0 ? low_of_pairs(raw) : high_of_pairs(raw));
}

template <typename T>
AFNEXT_INLINE int64_t padded(int64_t dim) {
  return (dim + kPerRegister<T> - 1) / kPerRegister<T> * kPerRegister<T>;
}

// Whether pairs of bf16 are multiplied as they lie, instead of part by part in float32.
template <typename T>
constexpr bool kInPairs = kHasPairs && sizeof(T) == 2;

// Up to kGroupRows rows on their way through the keys. `queries` and `out` are
// [padded(dim) / kLanes, kGroupRows, kLanes], the vectors in the order of part(); of queries in
// pairs the vectors of part 0 hold all.
struct Group {
  AFNEXT_INLINE_METHOD static int64_t at(int64_t d, int part, int row) {
    return d * kGroupRows + (part * kGroupRows + row) * kLanes;
  }

  float *queries, *out;
  int64_t row;
  int rows;
  alignas(64) float peak[kLanes], total[kLanes];
};

// The keys and values of a chunk, an address each: pages of any size read alike. Past `count` the
// last ones repeat, so that tiles of keys are always whole. Rows of int8, and those that no whole
// number of registers holds, are copied to `padding`, [2, kChunkKeys, padded(dim)], with zeros.
struct Chunk {
  int64_t first, count;
  const void *keys[kChunkKeys], *values[kChunkKeys];
  void* padding;  // or null
};

// Into L2: a core waits for too few lines of L1 at a time to hide the latency of memory.
AFNEXT_INLINE void fetch_line(const void* address) { __builtin_prefetch(address, 0, 2); }

// What is fetched, as many addresses as a chunk has keys, while scores and then sums of
// values are computed: the values of the chunk and the keys of the next.
struct Fetch {
  const void *const *first, *const *then;
};

// Rows take a power of two of lanes, so that a vector holds the scores of kTileKeys<H> keys:
// key by key, row by row.
template <int H>
constexpr int kSlots = H > 4   ? 8
                       : H > 2 ? 4
                               : H;
template <int H>
constexpr int kTileKeys = kLanes / kSlots<H>;

// Scores of H rows with as many keys as fill a vector. `soon`, as many addresses, are fetched.
template <int H, typename T>
AFNEXT_INLINE F32 score(const Group& g, const void* const* keys, const void* const* soon,
                        int64_t width, float scale) {
  constexpr int W = kTileKeys<H>;
  const T *key[W], *ahead[W];
  for (int w = 0; w < W; ++w) {
    key[w] = static_cast<const T*>(keys[w]);
    ahead[w] = static_cast<const T*>(soon[w]);
  }
  F32 sums[kLanes] = {};
  for (int64_t d = 0; d < width; d += kPerRegister<T>) {
    F32 raw[W];
    for (int w = 0; w < W; ++w) {
      fetch_line(ahead[w] + d);
      raw[w] = load_raw(key[w] + d);
    }
    if constexpr (kInPairs<T>) {
      for (int h = 0; h < H; ++h) {
        const F32 q = in_register(load(g.queries + Group::at(d, 0, h)));
        for (int w = 0; w < W; ++w)
          sums[w * kSlots<H> + h] = dot_pairs(q, raw[w], sums[w * kSlots<H> + h]);
      }
      continue;
    }
#pragma GCC unroll 2
    for (int p = 0; p < kParts<T>; ++p) {
      F32 k[W];
      for (int w = 0; w < W; ++w) k[w] = part<T>(raw[w], p);
      for (int h = 0; h < H; ++h) {
        const F32 q = in_register(load(g.queries + Group::at(d, p, h)));
        for (int w = 0; w < W; ++w) sums[w * kSlots<H> + h] = fma(q, k[w], sums[w * kSlots<H> + h]);
      }
    }
  }
  return sum_each(sums) * scale;
}

// What `fold` makes of all lanes that belong to the same row.
template <int H, typename Fold>
AFNEXT_INLINE F32 fold_rows(F32 v, Fold fold) {
  if constexpr (kSlots<H> < 2 && kLanes >= 2) v = fold(v, swap_lanes<1>(v));
  if constexpr (kSlots<H> < 4 && kLanes >= 4) v = fold(v, swap_lanes<2>(v));
  if constexpr (kSlots<H> < 8 && kLanes >= 8) v = fold(v, swap_lanes<4>(v));
  if constexpr (kSlots<H> < 16 && kLanes >= 16) v = fold(v, swap_lanes<8>(v));
  return v;
}

// Scores become weights relative to the new peak of their row; `shrink` brings what was summed
// before to that peak.
template <int H>
AFNEXT_INLINE void softmax(Group& g, float* scores, float* shrink) {
  const F32 none = broadcast(-__builtin_inff());
  F32 peak = none;
  for (int64_t i = 0; i < kChunkKeys * kSlots<H>; i += kLanes) peak = max(peak, load(scores + i));
  const F32 before = load(g.peak);
  peak = max(before, fold_rows<H>(peak, [](F32 a, F32 b)
                                            __attribute__((always_inline)) { return max(a, b); }));
  // Where nothing was seen yet all scores are -inf: any finite peak gives weights of zero.
  const F32 finite = select(peak == none, F32{}, peak);
  F32 total{};
  for (int64_t i = 0; i < kChunkKeys * kSlots<H>; i += kLanes) {
    const F32 weight = exp_nonpositive(load(scores + i) - finite);
    store(scores + i, weight);
    total += weight;
  }
  total = fold_rows<H>(total, [](F32 a, F32 b) __attribute__((always_inline)) { return a + b; });
  const F32 factor = exp_nonpositive(before - finite);
  store(shrink, factor);
  store(g.peak, peak);
  store(g.total, fma(load(g.total), factor, total));
}

// out = out * shrink + weights @ values, a register of the head dimension at a time.
template <int H, typename T>
AFNEXT_INLINE void add_values(Group& g, const Chunk& chunk, const void* const* soon,
                              const float* weights, const float* shrink, int64_t width) {
  for (int64_t d = 0; d < width; d += kPerRegister<T>) {
    F32 sums[H][kParts<T>];
    for (int h = 0; h < H; ++h) {
      for (int p = 0; p < kParts<T>; ++p) sums[h][p] = load(g.out + Group::at(d, p, h)) * shrink[h];
    }
    for (int64_t j = 0; j < chunk.count; ++j) {
      fetch_line(static_cast<const T*>(soon[j]) + d);
      const F32 raw = load_raw(static_cast<const T*>(chunk.values[j]) + d);
      const F32 even = part<T>(raw, 0), odd = part<T>(raw, 1);
      for (int h = 0; h < H; ++h) {
        const F32 weight = in_register(broadcast(weights[j * kSlots<H> + h]));
        sums[h][0] = fma(weight, even, sums[h][0]);
        if constexpr (kParts<T> == 2) sums[h][1] = fma(weight, odd, sums[h][1]);
      }
    }
    for (int h = 0; h < H; ++h) {
      for (int p = 0; p < kParts<T>; ++p) store(g.out + Group::at(d, p, h), sums[h][p]);
    }
  }
}

// The vectors of `slots` lanes that are first of two in a and b, and those that are second.
template <int slots, int second, int... I>
AFNEXT_INLINE F32 alternate(F32 a, F32 b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, ((I / slots * 2 + second) * slots + I % slots)...);
}

// Weights of two keys become a pair, row by row, in the first half of `weights`.
template <int H>
AFNEXT_INLINE void pair_keys(float* weights) {
  constexpr int slots = kSlots<H>;
  for (int64_t i = 0; i < kChunkKeys * slots; i += 2 * kLanes) {
    const F32 a = load(weights + i), b = load(weights + i + kLanes);
    store(weights + i / 2, round_pairs(alternate<slots, 0>(a, b, LaneIndices()),
                                       alternate<slots, 1>(a, b, LaneIndices())));
  }
}

// add_values for weights in pairs.
template <int H>
AFNEXT_INLINE void add_pairs(Group& g, const Chunk& chunk, const void* const* soon,
                             const float* weights, const float* shrink, int64_t width) {
  for (int64_t d = 0; d < width; d += kPerRegister<bf16>) {
    F32 sums[H][2];
    for (int h = 0; h < H; ++h) {
      for (int p = 0; p < 2; ++p) sums[h][p] = load(g.out + Group::at(d, p, h)) * shrink[h];
    }
    for (int64_t j = 0; j < chunk.count; j += 2) {
      fetch_line(static_cast<const bf16*>(soon[j]) + d);
      fetch_line(static_cast<const bf16*>(soon[j + 1]) + d);
      // Past the last key the weight is zero; what repeats there is the last value.
      const F32 first = load_raw(static_cast<const bf16*>(chunk.values[j]) + d);
      const F32 second = load_raw(static_cast<const bf16*>(chunk.values[j + 1]) + d);
      const F32 even = in_register(zip_low_of_pairs(first, second));
      const F32 odd = in_register(zip_high_of_pairs(first, second));
      for (int h = 0; h < H; ++h) {
        const F32 weight = in_register(broadcast(weights[j / 2 * kSlots<H> + h]));
        sums[h][0] = dot_pairs(weight, even, sums[h][0]);
        sums[h][1] = dot_pairs(weight, odd, sums[h][1]);
      }
    }
    for (int h = 0; h < H; ++h) {
      for (int p = 0; p < 2; ++p) store(g.out + Group::at(d, p, h), sums[h][p]);
    }
  }
}

// Keys that a row does not see get a score of -inf.
template <int H>
AFNEXT_INLINE void mask(const Group& g, const Band& band, int64_t group, const Chunk& chunk,
                        float* scores) {
  for (int h = 0; h < H; ++h) {
    const int64_t query = (g.row + h) / group;
    const int64_t first = band.first(query) - chunk.first, end = band.end(query) - chunk.first;
    for (int64_t j = 0; j < chunk.count; ++j) {
      if (j < first || j >= end) scores[j * kSlots<H> + h] = -__builtin_inff();
    }
  }
}

template <int H, typename T>
void meet(const PagedAttentionArgs& a, const Band& band, Group& g, const Chunk& chunk,
          const Fetch& fetch) {
  alignas(64) float scores[kSlots<H> * kChunkKeys], shrink[kLanes];
  const int64_t width = padded<T>(a.dim);
  for (int64_t j = 0; j < chunk.count; j += kTileKeys<H>)
    store(scores + j * kSlots<H>, score<H, T>(g, chunk.keys + j, fetch.first + j, width, a.scale));
  for (int64_t i = chunk.count * kSlots<H>; i < kChunkKeys * kSlots<H>; ++i)
    scores[i] = -__builtin_inff();
  const int64_t top = g.row / a.group, bottom = (g.row + H - 1) / a.group;
  if (band.first(bottom) > chunk.first || band.end(top) < chunk.first + chunk.count)
    mask<H>(g, band, a.group, chunk, scores);
  softmax<H>(g, scores, shrink);
  if constexpr (kInPairs<T>) {
    pair_keys<H>(scores);
    add_pairs<H>(g, chunk, fetch.then, scores, shrink, width);
  } else {
    add_values<H, T>(g, chunk, fetch.then, scores, shrink, width);
  }
}

// meet<rows>, for rows known at run time.
template <int H, typename T>
AFNEXT_INLINE void meet_of(const PagedAttentionArgs& a, const Band& band, Group& g,
                           const Chunk& chunk, const Fetch& fetch) {
  if constexpr (H > 1) {
    if (g.rows != H) return meet_of<H - 1, T>(a, band, g, chunk, fetch);
  }
  meet<H, T>(a, band, g, chunk, fetch);
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

// The query of the h-th row, turned, in the order of part() or in pairs.
template <typename T>
void load_query(const Rows& rows, int h, int64_t& turned, float* cos, float* sin, Group& g) {
  const PagedAttentionArgs& a = rows.a;
  const int64_t row = g.row + h, token = rows.token(row), width = padded<T>(a.dim);
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
      store(g.queries + Group::at(d, 0, h), load(x + d));
    } else {
      const F32 low = load(x + d), high = load(x + d + kLanes);
      const F32 even = evens(low, high), odd = odds(low, high);
      store(g.queries + Group::at(d, 0, h), kInPairs<T> ? round_pairs(even, odd) : even);
      store(g.queries + Group::at(d, 1, h), odd);
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
      if constexpr (kParts<T> == 1) {
        store(x + d, load(g.out + Group::at(d, 0, h)) * share);
      } else {
        const F32 even = load(g.out + Group::at(d, 0, h)) * share;
        const F32 odd = load(g.out + Group::at(d, 1, h)) * share;
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
  const int64_t width = padded<T>(a.dim), bytes = a.dim * static_cast<int64_t>(sizeof(T));
  T* padding = static_cast<T*>(chunk.padding);
  int64_t page = first / a.slots, slot = first % a.slots;
  for (int64_t j = 0; j < chunk.count; ++j) {
    const int64_t row = (pages[page] * a.kv_heads + item.kv_head) * a.slots + slot;
    T *key_copy = padding + j * width, *value_copy = padding + (kChunkKeys + j) * width;
    if (a.k_scales != nullptr) {
      scale_row(static_cast<const int8_t*>(a.k_pages) + row * a.dim, a.k_scales[row], a.dim,
                key_copy);
      scale_row(static_cast<const int8_t*>(a.v_pages) + row * a.dim, a.v_scales[row], a.dim,
                value_copy);
      chunk.keys[j] = key_copy, chunk.values[j] = value_copy;
    } else {
      const T *key = static_cast<const T*>(a.k_pages) + row * a.dim,
              *value = static_cast<const T*>(a.v_pages) + row * a.dim;
      chunk.keys[j] = padding ? std::memcpy(key_copy, key, bytes) : key;
      chunk.values[j] = padding ? std::memcpy(value_copy, value, bytes) : value;
    }
    if (++slot == a.slots) slot = 0, ++page;
  }
  for (int64_t j = chunk.count; j < kChunkKeys; ++j)
    chunk.keys[j] = chunk.keys[j - 1], chunk.values[j] = chunk.values[j - 1];
}

template <typename T>
void attend(const PagedAttentionArgs& a, const PagedItem& item) {
  constexpr int64_t kMaxGroups = kPagedItemRows / kGroupRows;
  const Rows rows{a, item, a.requests[item.request]};
  const Band& band = rows.request.band;
  const int64_t state = kGroupRows * padded<T>(a.dim);
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
    for (int h = 0; h < g.rows; ++h) load_query<T>(rows, h, turned, cos, sin, g);
    std::memset(g.out, 0, state * sizeof(float));
    store(g.peak, broadcast(-__builtin_inff()));
    store(g.total, F32{});
  }

  // Chunks begin at multiples of kChunkKeys, so that a row's result does not depend on its
  // neighbours.
  Chunk chunks[2];
  chunks[0].padding = chunks[1].padding = nullptr;
  if (padded<T>(a.dim) != a.dim || a.k_scales != nullptr) {
    const int64_t size = 2 * kChunkKeys * padded<T>(a.dim);
    T* padding = scratch<T>(1, 2 * size);
    std::memset(padding, 0, 2 * size * sizeof(T));
    chunks[0].padding = padding, chunks[1].padding = padding + size;
  }
  int64_t key = item.first_key / kChunkKeys * kChunkKeys;
  look_up<T>(a, item, key, item.end_key, chunks[0]);
  for (int turn = 0; key < item.end_key; key += kChunkKeys, turn ^= 1) {
    const Chunk &chunk = chunks[turn], &coming = chunks[turn ^ 1];
    look_up<T>(a, item, key + kChunkKeys, item.end_key, chunks[turn ^ 1]);
    Fetch ahead{chunk.values, coming.count > 0 ? coming.keys : chunk.keys};
    for (int64_t i = 0; i < count; ++i) {
      Group& g = groups[i];
      if (band.first(g.row / a.group) >= key + chunk.count) continue;
      if (band.end((g.row + g.rows - 1) / a.group) <= key) continue;
      meet_of<kGroupRows, T>(a, band, g, chunk, ahead);
      ahead = {chunk.keys, chunk.values};  // the first group fetched for all
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
