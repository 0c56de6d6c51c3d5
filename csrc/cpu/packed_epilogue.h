// From the float32 sums of a panel to rows of the output.
#pragma once

#include "cpu/blocks.h"
#include "cpu/packed_linear.h"
#include "cpu/simd/gelu.h"
#include "cpu/simd/stream.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

template <typename T>
AFNEXT_INLINE F32 load_upto(const T* p, int64_t n) {
  return n >= kLanes ? load(p) : load_n(p, static_cast<int>(n));
}

// n sums and, where there is one, their bias.
template <typename T>
AFNEXT_INLINE F32 with_bias(const float* sums, const T* bias, int64_t n) {
  return bias != nullptr ? load(sums) + load_upto(bias, n) : load(sums);
}

// An activation turns the sums of a row of a panel into outputs; `bias` belongs to the first of
// them, `columns` is the distance from a gate to its up column.
struct Identity {
  template <typename T>
  static AFNEXT_INLINE_METHOD F32 apply(const float* sums, const T* bias, int64_t, int64_t n) {
    return with_bias(sums, bias, n);
  }
};
struct Gelu {
  template <typename T>
  static AFNEXT_INLINE_METHOD F32 apply(const float* sums, const T* bias, int64_t, int64_t n) {
    return gelu(with_bias(sums, bias, n));
  }
};
struct SiluMul {
  template <typename T>
  static AFNEXT_INLINE_METHOD F32 apply(const float* sums, const T* bias, int64_t columns,
                                        int64_t n) {
    const F32 gate = with_bias(sums, bias, n);
    const F32 up = with_bias(sums + kPanelColumns / 2, bias ? bias + columns : bias, n);
    return gate / (exp(-gate) + 1.0f) * up;
  }
};

// Sums [rows, 32] times the scales of their columns.
AFNEXT_INLINE void scale_columns(int64_t rows, const float* scales, float* sums) {
  for (int64_t i = 0; i < rows * kPanelColumns; i += kLanes)
    store(sums + i, load(sums + i) * load(scales + i % kPanelColumns));
}

// Whether the output is so large that it would have left the caches before it is read: its lines
// then go to memory as they are, and are not fetched from there first. A panel's rows must be whole
// lines.
AFNEXT_INLINE bool streams(const PackedLinearArgs& a) {
  constexpr int64_t kCached = 2 << 20;
  const int64_t columns = a.weight.columns(), size = a.dtype == DType::f32 ? 4 : 2;
  return kHasStreams && a.activation != Activation::silu_mul && columns % kPanelColumns == 0 &&
         a.m * columns * size > kCached && reinterpret_cast<uintptr_t>(a.out) % kLineBytes == 0;
}

template <bool streamed, typename A, typename T>
void finish_as(const PackedLinearArgs& a, int64_t row, int64_t rows, int64_t panel,
               const float* sums) {
  const int64_t columns = a.weight.columns(), width = a.weight.panel_width(), first = panel * width;
  const int64_t present = columns - first < width ? columns - first : width;
  const T* bias = a.bias != nullptr ? static_cast<const T*>(a.bias) + first : nullptr;
  for (int64_t r = 0; r < rows; ++r, sums += kPanelColumns) {
    const int64_t offset = (row + r) * columns + first;
    T* out = static_cast<T*>(a.out) + offset;
    const T* residual =
        a.residual != nullptr ? static_cast<const T*>(a.residual) + offset : nullptr;
    F32 line[kPanelColumns / kLanes];
    for (int64_t c = 0; c < present; c += kLanes) {
      const int64_t n = present - c;
      F32 v = A::apply(sums + c, bias != nullptr ? bias + c : bias, columns, n);
      if (residual != nullptr) v += load_upto(residual + c, n);
      if constexpr (streamed) {
        line[c / kLanes] = v;
      } else {
        n >= kLanes ? store(out + c, v) : store_n(out + c, v, static_cast<int>(n));
      }
    }
    if constexpr (streamed) stream(out, line);
  }
}

template <typename T>
void finish_for(const PackedLinearArgs& a, int64_t row, int64_t rows, int64_t panel,
                const float* sums) {
  const bool streamed = streams(a);
  switch (a.activation) {
    case Activation::none:
      return streamed ? finish_as<true, Identity, T>(a, row, rows, panel, sums)
                      : finish_as<false, Identity, T>(a, row, rows, panel, sums);
    case Activation::gelu:
      return streamed ? finish_as<true, Gelu, T>(a, row, rows, panel, sums)
                      : finish_as<false, Gelu, T>(a, row, rows, panel, sums);
    case Activation::silu_mul:
      return finish_as<false, SiluMul, T>(a, row, rows, panel, sums);
  }
}

// Rows [row, row + rows) of `panel`, whose sums are [rows, 32]: bias, activation, residual,
// rounding.
AFNEXT_INLINE void finish(const PackedLinearArgs& a, int64_t row, int64_t rows, int64_t panel,
                          const float* sums) {
  a.dtype == DType::f32 ? finish_for<float>(a, row, rows, panel, sums)
                        : finish_for<bf16>(a, row, rows, panel, sums);
}

// What a tile asks for while it computes, some cache lines at every step: of the weight that comes
// next, and the places that finish() will write, which lie too far apart for hardware to look
// ahead. All at once would hold up the loads of the tile itself.
template <typename Weight>
struct Ahead {
  const Weight& weight;  // fetch_next(line) asks for a line
  int64_t line, lines;   // the next one, and how many at a step
  const char* out;
  int64_t stride, rows;  // bytes, and how many at a step

  AFNEXT_INLINE_METHOD void step() {
    for (const int64_t end = line + lines; line < end; ++line) weight.fetch_next(line);
    for (int64_t r = 0; r < rows; ++r, out += stride) __builtin_prefetch(out, 1);
  }
};

// Part `index` of `count` of the next `all_lines`, in `steps` steps, and with `outputs` the places
// of rows from `row` on of a panel.
template <typename Weight>
AFNEXT_INLINE Ahead<Weight> ahead(const PackedLinearArgs& a, const Weight& weight,
                                  int64_t all_lines, int64_t index, int64_t count, int64_t steps,
                                  bool outputs, int64_t row, int64_t rows, int64_t panel) {
  if (steps == 0) steps = 1;  // a product over nothing
  const int64_t size = a.dtype == DType::f32 ? 4 : 2, columns = a.weight.columns();
  const int64_t lines = ceil_div(all_lines, count * steps);
  const char* out =
      static_cast<const char*>(a.out) + (row * columns + panel * a.weight.panel_width()) * size;
  return {weight, index * steps * lines, lines,
          out,    columns * size,        outputs && !streams(a) ? ceil_div(rows, steps) : 0};
}

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
