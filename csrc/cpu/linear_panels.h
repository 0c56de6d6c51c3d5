// Plain weights for the kernels of packed ones: a thread packs the chunk of a panel that it comes
// to.
#pragma once

#include "cpu/linear.h"
#include "cpu/pack.h"
#include "cpu/pack_panel.h"
#include "cpu/packed_blocks.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

// A chunk of a panel, packed, and where the next one lies in the plain weight: step by step, while
// this one is multiplied, its 32 rows come in, two cache lines after the other. Asking for what is
// beyond the weight does no harm.
template <int64_t chunk_steps>
struct PlainChunk {
  static constexpr int64_t kRowLines = 2 * chunk_steps / kPanelColumns;
  const float* words;
  uintptr_t next;
  int64_t stride;  // bytes

  operator const float*() const { return words; }
  int64_t lines(int64_t steps) const { return 2 * steps; }
  AFNEXT_INLINE_METHOD void fetch(const float*, int64_t step) const {
    fetch_next(2 * step), fetch_next(2 * step + 1);
  }
  AFNEXT_INLINE_METHOD void fetch_next(int64_t line) const {
    const uintptr_t place =
        next + static_cast<uintptr_t>(line / kRowLines * stride + line % kRowLines * kLineBytes);
    __builtin_prefetch(reinterpret_cast<const void*>(place), 0, 2);
  }
};

template <typename T, int64_t chunk_steps>
struct PlainPanels {
  const PackedView& view;
  const T* weight;
  int64_t stride;

  PlainChunk<chunk_steps> chunk(int64_t panel, int64_t step, int64_t steps, int64_t next_panel,
                                int64_t next_step) const {
    float* words = scratch<float>(2, chunk_steps * kPanelColumns);
    pack_steps<T>(view, weight, stride, panel, step, steps, words);
    constexpr int64_t kBytes = sizeof(T);
    const int64_t next = next_panel * kPanelColumns * stride + next_step * kWordElements<T>;
    return {words, reinterpret_cast<uintptr_t>(weight) + static_cast<uintptr_t>(next * kBytes),
            stride * kBytes};
  }
  void complete(int64_t, int64_t, float*) const {}
};

template <typename T, typename Kernel>
void linear_panels(const LinearArgs& a, WeightFormat format) {
  using Panels = PlainPanels<T, Kernel::kChunk>;
  PackedLinearArgs args{};
  args.dtype = a.dtype, args.m = a.m;
  args.weight.format = format, args.weight.n = a.n, args.weight.k = a.k;
  args.x = a.x, args.x_stride = a.x_stride;
  args.bias = a.bias, args.out = a.out;
  const Panels panels{args.weight, static_cast<const T*>(a.weight), a.weight_stride};
  PackedProduct<Kernel, Panels>(args, dense_steps(args.weight), panels).run();
}

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
