// A run of steps of a panel of a dense format (afnext/pack.h), from the plain weight.
#pragma once

#include <type_traits>

#include "afnext/pack.h"
#include "cpu/simd/shuffle.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

template <typename Format>
constexpr int64_t kWordElements = sizeof(float) / sizeof(Format);  // one float32, or a pair of bf16

// kLanes words of a row of the plain weight.
template <typename Format, typename Plain>
AFNEXT_INLINE F32 load_panel_words(const Plain* p) {
  F32 words;
  if constexpr (sizeof(Format) == sizeof(float)) {
    words = load(p);
  } else if constexpr (std::is_same_v<Format, Plain>) {
    std::memcpy(&words, p, sizeof(words));
  } else {
    bf16 pairs[2 * kLanes];
    store(pairs, load(p));
    store(pairs + kLanes, load(p + kLanes));
    std::memcpy(&words, pairs, sizeof(words));
  }
  return words;
}
// Where the row has but n elements left; the rest is zero.
template <typename Format, typename Plain>
AFNEXT_INLINE F32 load_panel_words_n(const Plain* p, int64_t n) {
  constexpr int64_t kWhole = kWordElements<Format> * kLanes;
  Plain row[kWhole] = {};
  std::memcpy(row, p, static_cast<size_t>(n < kWhole ? n : kWhole) * sizeof(Plain));
  return load_panel_words<Format>(row);
}

// Steps [first, first + count) of panel `index` of the weight at `plain`, whose rows are `stride`
// elements apart: squares of words change sides.
template <typename Format, typename Plain>
void pack_steps(const PackedView& view, const Plain* plain, int64_t stride, int64_t index,
                int64_t first, int64_t count, float* words) {
  constexpr int64_t kElements = kWordElements<Format>;
  for (int64_t column = 0; column < kPanelColumns; column += kLanes) {
    const int64_t row = view.row(index, column);  // and the next ones, as far as there are any
    const bool all_rows = view.row(index, column + kLanes - 1) >= 0;
    for (int64_t step = 0; step < count; step += kLanes) {
      const int64_t element = (first + step) * kElements, left = view.k - element;
      F32 square[kLanes];
      if (all_rows && left >= kElements * kLanes) {
        for (int c = 0; c < kLanes; ++c)
          square[c] = load_panel_words<Format>(plain + (row + c) * stride + element);
      } else {
        for (int c = 0; c < kLanes; ++c) {
          square[c] = left > 0 && view.row(index, column + c) >= 0
                          ? load_panel_words_n<Format>(plain + (row + c) * stride + element, left)
                          : F32{};
        }
      }
      transpose(square);
      float* out = words + step * kPanelColumns + column;
      if (count - step >= kLanes) {
        for (int s = 0; s < kLanes; ++s) store(out + s * kPanelColumns, square[s]);
      } else {
        for (int64_t s = 0; s < count - step; ++s) store(out + s * kPanelColumns, square[s]);
      }
    }
  }
}

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
