// Host code: lists a batch's work for the paged kernels.
#include <algorithm>
#include <cstring>

#include "cpu/band.h"
#include "cuda/paged_work.h"

namespace afnext::cuda {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t window_side(int64_t width) {
  return width < 0 ? cpu::Band::kUnlimited : std::min(width, cpu::Band::kUnlimited);
}

int64_t tile_rows(int64_t rows) { return rows <= kSmallRows ? kSmallRows : kLargeRows; }

template <typename T>
constexpr int64_t kWordsOf = sizeof(T) / sizeof(int32_t);

template <typename T>
void put(std::vector<int32_t>& words, const std::vector<T>& items) {
  const size_t at = words.size();
  words.resize(at + items.size() * kWordsOf<T>);
  if (!items.empty()) std::memcpy(words.data() + at, items.data(), items.size() * sizeof(T));
}

}  // namespace

void PagedWork::add_items(const PagedShape& shape, int32_t request, int32_t first_query,
                          int64_t queries, int64_t keys) {
  const cpu::Band band{queries, keys, window_side(shape.left), window_side(shape.right)};
  const int64_t rows = queries * shape.group;
  if (rows == 0) return;
  const int64_t tile = tile_rows(rows), tiles = divide_up(rows, tile);
  const int64_t first = band.first(0), span = std::max<int64_t>(0, band.end(queries - 1) - first);
  const int64_t most = std::max<int64_t>(1, span / kPartKeys);
  const int64_t wanted = std::clamp<int64_t>(shape.splits / tiles, 1, most);
  const int64_t part_keys = divide_up(divide_up(span, wanted), kPartStep) * kPartStep;
  const int64_t parts = span == 0 ? 1 : divide_up(span, part_keys);
  auto& items = tile == kSmallRows ? small_ : large_;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t part_begin = first + part * part_keys;
    const int64_t part_end = std::min(first + span, part_begin + part_keys);
    for (int64_t row = 0; row < rows; row += tile) {
      const int64_t last_query = (std::min(row + tile, rows) - 1) / shape.group;
      const int64_t begin = std::max(part_begin, band.first(row / shape.group));
      const int64_t end = std::max(begin, std::min(part_end, band.end(last_query)));
      const int64_t partial = counts_.partial_rows + part * rows;
      items.push_back({request,
                       first_query,
                       static_cast<int32_t>(queries),
                       static_cast<int32_t>(keys),
                       static_cast<int32_t>(row),
                       static_cast<int32_t>(begin),
                       static_cast<int32_t>(end),
                       0,
                       parts > 1 ? static_cast<int32_t>(partial) : -1,
                       static_cast<int32_t>(parts * rows),
                       {}});
    }
  }
  if (parts == 1) return;
  for (int64_t row = 0; row < rows; row += kSmallRows) {
    merges_.push_back({first_query,
                       static_cast<int32_t>(queries),
                       static_cast<int32_t>(row),
                       static_cast<int32_t>(parts),
                       static_cast<int32_t>(counts_.partial_rows),
                       {}});
  }
  counts_.merge_rows = std::max(counts_.merge_rows, std::min<int64_t>(rows, kSmallRows));
  counts_.partial_rows += shape.kv_heads * parts * rows;
}

void PagedWork::fill(const PagedShape& shape, const TensorView& page_table,
                     const TensorView& cu_seqlens_q, const TensorView& kv_lengths, bool attends) {
  counts_ = {};
  small_.clear();
  large_.clear();
  merges_.clear();
  requests_.clear();
  const int32_t *ends = cu_seqlens_q.as<int32_t>(), *lengths = kv_lengths.as<int32_t>();
  const int64_t count = kv_lengths.shape[0];
  for (int64_t n = 0; n < count; ++n) {
    const int64_t queries = ends[n + 1] - ends[n];
    if (attends) add_items(shape, static_cast<int32_t>(n), ends[n], queries, lengths[n]);
    requests_.push_back({ends[n], static_cast<int32_t>(lengths[n] - queries), 0, 0});
  }
  // Blocks take items in turn: the long ones first.
  const auto longer = [](const PagedItem& a, const PagedItem& b) {
    return a.end - a.begin > b.end - b.begin;
  };
  std::stable_sort(small_.begin(), small_.end(), longer);
  std::stable_sort(large_.begin(), large_.end(), longer);

  counts_.small = static_cast<int64_t>(small_.size());
  counts_.large = static_cast<int64_t>(large_.size());
  counts_.merges = static_cast<int64_t>(merges_.size());
  const int64_t first_merge =
      kWordsOf<PagedHeader> + (counts_.small + counts_.large) * kWordsOf<PagedItem>;
  const int64_t first_request = first_merge + counts_.merges * kWordsOf<PagedMerge>;
  int64_t page = first_request + count * kWordsOf<PagedRequest>;
  for (int64_t n = 0; n < count; ++n) {
    requests_[n].pages = static_cast<int32_t>(page);
    page += divide_up(lengths[n], shape.slots);
    requests_[n].pages_end = static_cast<int32_t>(page);
  }
  for (auto* items : {&small_, &large_}) {
    for (PagedItem& item : *items) item.pages = requests_[item.request].pages;
  }
  const PagedHeader header{static_cast<int32_t>(counts_.small),
                           static_cast<int32_t>(counts_.large),
                           static_cast<int32_t>(counts_.merges),
                           static_cast<int32_t>(first_merge),
                           static_cast<int32_t>(count),
                           static_cast<int32_t>(first_request),
                           ends[count],
                           0};
  words_.clear();
  put(words_, std::vector<PagedHeader>{header});
  put(words_, small_);
  put(words_, large_);
  put(words_, merges_);
  put(words_, requests_);
  for (int64_t n = 0; n < count; ++n) {
    const int32_t* row = page_table.as<int32_t>() + n * page_table.stride[0];
    words_.insert(words_.end(), row, row + divide_up(lengths[n], shape.slots));
  }
  counts_.words = static_cast<int64_t>(words_.size());
}

PagedCounts PagedWork::most(const PagedShape& shape, const PagedLimits& limits) {
  const int64_t rows = limits.tokens * shape.group;
  const int64_t requests = std::min(limits.requests, limits.tokens);  // that have queries
  PagedCounts most;
  most.small = requests * limits.splits;
  if (limits.queries * shape.group > kSmallRows) {
    most.large = rows / kLargeRows + requests * (1 + limits.splits);
  }
  if (limits.splits > 1) {
    most.merges = rows / kSmallRows + requests;
    most.merge_rows = std::min<int64_t>(limits.queries * shape.group, kSmallRows);
    // tiles * parts <= splits in each request that has parts.
    const int64_t tile = tile_rows(limits.queries * shape.group);
    most.partial_rows = shape.kv_heads * limits.splits * std::min(rows, requests * tile);
  }
  most.words = kWordsOf<PagedHeader> + (most.small + most.large) * kWordsOf<PagedItem> +
               most.merges * kWordsOf<PagedMerge> + limits.requests * kWordsOf<PagedRequest> +
               limits.requests * limits.pages;
  return most;
}

}  // namespace afnext::cuda
