#include "cpu/pack.h"

#include "cpu/parallel.h"
#include "cpu/simd/shuffle.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

// Words of a row of the plain weight, as vectors of 32 bits: a float32 each, or a pair of bf16.
template <typename To, typename From>
struct Words;

template <typename From>
struct Words<float, From> {
  static constexpr int kElements = 1;
  static F32 load_n(const From* p, int64_t n) {
    return n >= kLanes ? load(p) : AFNEXT_ISA::load_n(p, static_cast<int>(n));
  }
  static void store_n(float* p, F32 words, int64_t n) {
    n >= kLanes ? store(p, words) : AFNEXT_ISA::store_n(p, words, static_cast<int>(n));
  }
};

template <typename From>
struct Words<bf16, From> {
  static constexpr int kElements = 2;
  static F32 load_n(const From* p, int64_t n) {
    bf16 pairs[2 * kLanes] = {};
    if (n >= 2 * kLanes) {
      store(pairs, load(p));
      store(pairs + kLanes, load(p + kLanes));
    } else {
      for (int64_t i = 0; i < n; ++i) from_float(pairs + i, to_float(p[i]));
    }
    F32 words;
    std::memcpy(&words, pairs, sizeof(words));
    return words;
  }
  static void store_n(bf16* p, F32 words, int64_t n) {
    std::memcpy(p, &words, static_cast<size_t>(n < 2 * kLanes ? n : 2 * kLanes) * sizeof(bf16));
  }
};

// Squares of words change sides; what the plain weight lacks is zero.
template <typename Format, typename Plain>
void panel(const PackArgs& a, int64_t index) {
  using W = Words<Format, Plain>;
  const int64_t steps = dense_steps(a.view);
  float* words = static_cast<float*>(a.view.data) + index * steps * kPanelColumns;
  for (int64_t column = 0; column < kPanelColumns; column += kLanes) {
    for (int64_t step = 0; step < steps; step += kLanes) {
      F32 square[kLanes];
      const int64_t first = step * W::kElements, left = a.view.k - first;
      const int64_t count = steps - step < kLanes ? steps - step : kLanes;
      if (a.unpack) {
        for (int64_t s = 0; s < kLanes; ++s) {
          square[s] = s < count ? load(words + (step + s) * kPanelColumns + column) : F32{};
        }
        transpose(square);
      }
      for (int64_t c = 0; c < kLanes; ++c) {
        const int64_t row = a.view.row(index, column + c);
        Plain* plain = static_cast<Plain*>(a.plain) + row * a.stride + first;
        if (!a.unpack) {
          square[c] = row >= 0 && left > 0 ? W::load_n(plain, left) : F32{};
        } else if (row >= 0 && left > 0) {
          if constexpr (sizeof(Plain) == sizeof(Format)) W::store_n(plain, square[c], left);
        }
      }
      if (!a.unpack) {
        transpose(square);
        for (int64_t s = 0; s < count; ++s) {
          store(words + (step + s) * kPanelColumns + column, square[s]);
        }
      }
    }
  }
}

template <typename Format, typename Plain>
void panels(const PackArgs& a) {
  parallel_for(a.view.panels(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) panel<Format, Plain>(a, i);
  });
}

}  // namespace

void pack(const PackArgs& args) {
  if (args.view.format == WeightFormat::f32) {
    args.dtype == DType::f32 ? panels<float, float>(args) : panels<float, bf16>(args);
  } else {
    args.dtype == DType::f32 ? panels<bf16, float>(args) : panels<bf16, bf16>(args);
  }
}

AFNEXT_REGISTER(pack, PackArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
