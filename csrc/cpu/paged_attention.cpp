// Attention over pages by the online softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et
// al. 2022). The heads of a group share every load of a key and a value.
#include "cpu/paged_attention.h"

#include "cpu/paged_attention_bytes.h"
#include "cpu/paged_attention_meet.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd/rotate_row.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

static_assert(kPartKeys % kChunkKeys == 0);

template <typename In>
AFNEXT_INLINE int64_t padded(int64_t dim) {
  return (dim + In::kChannels - 1) / In::kChannels * In::kChannels;
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

// The query of the h-th row, turned.
template <typename In>
void load_query(const Rows& rows, int h, int64_t& turned, float* cos, float* sin, Group& g) {
  using T = typename In::Query;
  const PagedAttentionArgs& a = rows.a;
  const int64_t row = g.row + h, token = rows.token(row);
  alignas(64) float x[kMaxDim + 4 * kLanes] = {};
  load_row(static_cast<const T*>(a.q.data) + token * a.q.token + rows.head(row) * a.q.head, a.dim,
           x);
  if (a.half > 0) {
    if (turned != token) sincos_row(a.times[token], a.inv_freq, a.half, cos, sin);
    turned = token;
    rotate_row(x, cos, sin, a.half, a.interleaved, x);
  }
  In::set_query(g, h, x, padded<In>(a.dim), a.scale * Exponential<T>::kPerUnit);
}

template <typename In>
void write(const Rows& rows, const Group& g) {
  using T = typename In::Query;
  const PagedAttentionArgs& a = rows.a;
  const int64_t heads = a.kv_heads * a.group;
  alignas(64) float x[kMaxDim + 4 * kLanes];
  for (int h = 0; h < g.rows; ++h) {
    const float total = g.total[h], share = total == 0.0f ? 0.0f : 1.0f / total;
    const float lse = total == 0.0f ? -__builtin_inff()
                                    : g.peak[h] * Exponential<T>::kUnit + __builtin_logf(total);
    In::get_out(g, h, padded<In>(a.dim), x);
    for (int64_t d = 0; d < a.dim; ++d) x[d] *= share;
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

// Where an item's keys from `first` on lie, up to a chunk of them; how many these are.
template <typename In>
AFNEXT_INLINE int64_t look_up(const PagedAttentionArgs& a, const PagedItem& item, int64_t first,
                              Chunk& chunk) {
  using Page = typename In::Page;
  const int32_t* pages = a.requests[item.request].pages;
  const int64_t left = item.end_key - first, count = left < kChunkKeys ? left : kChunkKeys;
  chunk.first = first, chunk.count = count, chunk.zipped = false;
  chunk.readable = (count + In::kKeysAtOnce - 1) / In::kKeysAtOnce * In::kKeysAtOnce;
  int64_t page = first / a.slots, slot = first % a.slots;
  for (int64_t j = 0; j < count; slot = 0, ++page) {
    int64_t row = (pages[page] * a.kv_heads + item.kv_head) * a.slots + slot;
    const int64_t end = j + a.slots - slot < count ? j + a.slots - slot : count;
    for (; j < end; ++j, ++row) {
      chunk.keys[j] = static_cast<const Page*>(a.k_pages) + row * a.dim;
      chunk.values[j] = static_cast<const Page*>(a.v_pages) + row * a.dim;
      if constexpr (In::kScaled) {
        chunk.key_scales[j] = a.k_scales[row];
        chunk.value_scales[j] = a.v_scales[row];
      }
    }
  }
  for (int64_t j = count; j < chunk.readable; ++j) {
    chunk.keys[j] = chunk.keys[j - 1], chunk.values[j] = chunk.values[j - 1];
    if constexpr (In::kScaled)
      chunk.key_scales[j] = chunk.key_scales[j - 1], chunk.value_scales[j] = 0.0f;
  }
  return count;
}

// Rows that no whole number of registers holds are copied to `padding`, [2, kChunkKeys, width] of
// zeros.
template <typename In>
void pad(int64_t dim, int64_t width, typename In::Page* padding, Chunk& chunk) {
  using Page = typename In::Page;
  for (const void** rows : {chunk.keys, chunk.values}) {
    for (int64_t j = 0; j < chunk.count; ++j, padding += width)
      rows[j] = std::memcpy(padding, rows[j], dim * sizeof(Page));
    for (int64_t j = chunk.count; j < chunk.readable; ++j) rows[j] = rows[j - 1];
    padding += (kChunkKeys - chunk.count) * width;
  }
}

// A group from `row` on: queries turned, nothing seen yet. `memory` holds 2 * kGroupRows * width
// floats; `turned` is the token that cos and sin are of.
template <typename In>
void begin(const Rows& rows, int64_t row, int64_t width, float* memory, int64_t& turned, float* cos,
           float* sin, Group& g) {
  const int64_t left = rows.item.end_row - row;
  g.row = row, g.rows = static_cast<int>(left < kGroupRows ? left : kGroupRows);
  g.queries = memory, g.out = memory + kGroupRows * width;
  for (int h = 0; h < g.rows; ++h) load_query<In>(rows, h, turned, cos, sin, g);
  std::memset(g.out, 0, kGroupRows * width * sizeof(float));
  store(g.peak, broadcast(-__builtin_inff()));
  store(g.total, F32{});
}

// Items that no thread has begun: they are taken one by one, so that a thread that loses its core
// for a while holds nobody up.
struct Queue {
  const PagedAttentionArgs& a;
  int64_t taken = 0;

  const PagedItem* take() {
    const int64_t i = __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED);
    return i < a.item_count ? a.items + i : nullptr;
  }
};

// Takes the next item, or null, in time to fetch its first keys, and gives it back.
template <typename In>
const PagedItem* attend(const PagedAttentionArgs& a, const PagedItem& item, Queue& queue) {
  using Page = typename In::Page;
  constexpr int64_t kMaxGroups = kPagedItemRows / kGroupRows;
  const Rows rows{a, item, a.requests[item.request]};
  const Band& band = rows.request.band;
  const int64_t width = padded<In>(a.dim), size = 2 * kGroupRows * width;
  const int64_t count = (item.end_row - item.first_row + kGroupRows - 1) / kGroupRows;

  float* memory = scratch<float>(0, count * size);
  alignas(64) float cos[kMaxDim / 2 + kLanes], sin[kMaxDim / 2 + kLanes];
  Group groups[kMaxGroups];
  int64_t turned = -1;
  for (int64_t i = 0; i < count; ++i)
    begin<In>(rows, item.first_row + i * kGroupRows, width, memory + i * size, turned, cos, sin,
              groups[i]);

  Page* padding = nullptr;
  if (width != a.dim) {
    padding = scratch<Page>(1, 2 * kChunkKeys * width);
    std::memset(padding, 0, 2 * kChunkKeys * width * sizeof(Page));
  }
  Chunk chunks[2];
  if constexpr (In::kInQuads)
    chunks[0].quads = chunks[1].quads = scratch<float>(2, kChunkKeys / 4 * width);
  const PagedItem* coming = nullptr;
  // Chunks begin at multiples of kChunkKeys, so that a row's result does not depend on its
  // neighbours.
  int64_t key = item.first_key / kChunkKeys * kChunkKeys;
  const bool empty = key >= item.end_key;
  if (!empty) look_up<In>(a, item, key, chunks[0]);
  for (int turn = 0; key < item.end_key; key += kChunkKeys, turn ^= 1) {
    Chunk &chunk = chunks[turn], &next = chunks[turn ^ 1];
    int64_t ahead = 0;
    if (key + kChunkKeys < item.end_key) {
      ahead = look_up<In>(a, item, key + kChunkKeys, next);
    } else {
      coming = queue.take();
      if (coming != nullptr && coming->first_key < coming->end_key)
        ahead = look_up<In>(a, *coming, coming->first_key / kChunkKeys * kChunkKeys, next);
    }
    const int64_t bytes = a.dim * static_cast<int64_t>(sizeof(Page));
    Fetch keys{next.keys, next.keys + ahead, bytes},
        values{next.values, next.values + ahead, bytes};
    if (padding != nullptr) pad<In>(a.dim, width, padding, chunk);
    for (int64_t i = 0; i < count; ++i) {
      Group& g = groups[i];
      if (band.first(g.row / a.group) >= key + chunk.count) continue;
      if (band.end((g.row + g.rows - 1) / a.group) <= key) continue;
      meet_of<In>(band, a.group, g, chunk, keys, values, width);
      keys.row = keys.end, values.row = values.end;  // the first group fetched for all
    }
  }
  for (int64_t i = 0; i < count; ++i) write<In>(rows, groups[i]);
  return empty ? queue.take() : coming;
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

template <typename In>
void run(const PagedAttentionArgs& a) {
  Queue queue{a};
  parallel_for(a.threads, 1, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) {
      for (const PagedItem* item = queue.take(); item != nullptr;)
        item = attend<In>(a, *item, queue);
    }
  });
  const int64_t heads = a.kv_heads * a.group;
  int64_t parts = 0;
  for (int64_t n = 0; n < a.request_count; ++n) parts += a.requests[n].parts;
  const int64_t grain = 256 * a.request_count / (parts + 1) + 1;
  parallel_for(a.request_count * heads, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const PagedRequest& request = a.requests[i / heads];
      const int64_t head = i % heads;
      for (int64_t query = 0; request.parts > 1 && query < request.band.queries; ++query)
        merge_row<typename In::Query>(a, request, head, query * a.group + head % a.group);
    }
  });
}

}  // namespace

void paged_attention(const PagedAttentionArgs& args) {
  const bool int8 = args.k_scales != nullptr;
  if (args.dtype == DType::f32) {
    int8 ? run<InFloats<float, int8_t>>(args) : run<InFloats<float, float>>(args);
  } else if (int8) {
    run<std::conditional_t<kHasByteProducts, InBytes, InFloats<bf16, int8_t>>>(args);
  } else {
    run<std::conditional_t<kHasPairs, InPairs, InFloats<bf16, bf16>>>(args);
  }
}

AFNEXT_REGISTER(paged_attention, PagedAttentionArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
