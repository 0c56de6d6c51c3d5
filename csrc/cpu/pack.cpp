#include "cpu/pack.h"

#include "cpu/pack_panel.h"
#include "cpu/parallel.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

// The way back of pack_steps, all of a panel at once; Format is the plain weight's type too.
template <typename Format>
void unpack_panel(const PackedView& view, int64_t index, Format* plain, int64_t stride) {
  constexpr int64_t kElements = kWordElements<Format>;
  const int64_t steps = dense_steps(view);
  const float* words = static_cast<const float*>(view.data) + index * steps * kPanelColumns;
  for (int64_t column = 0; column < kPanelColumns; column += kLanes) {
    for (int64_t step = 0; step * kElements < view.k; step += kLanes) {
      F32 square[kLanes];
      for (int64_t s = 0; s < kLanes; ++s) {
        square[s] = step + s < steps ? load(words + (step + s) * kPanelColumns + column) : F32{};
      }
      transpose(square);
      const int64_t first = step * kElements, left = view.k - first;
      const int64_t count = left < kElements * kLanes ? left : kElements * kLanes;
      for (int64_t c = 0; c < kLanes; ++c) {
        const int64_t row = view.row(index, column + c);
        if (row < 0) continue;
        std::memcpy(plain + row * stride + first, &square[c],
                    static_cast<size_t>(count) * sizeof(Format));
      }
    }
  }
}

template <typename Format, typename Plain>
void pack_panels(const PackArgs& a) {
  const int64_t steps = dense_steps(a.view);
  parallel_for(a.view.panels(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      pack_steps<Format>(a.view, static_cast<const Plain*>(a.plain), a.stride, i, 0, steps,
                         static_cast<float*>(a.view.data) + i * steps * kPanelColumns);
    }
  });
}

template <typename Format>
void unpack_panels(const PackArgs& a) {
  parallel_for(a.view.panels(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      unpack_panel(a.view, i, static_cast<Format*>(a.plain), a.stride);
  });
}

template <typename Format>
void pack_as(const PackArgs& a) {
  if (a.unpack) return unpack_panels<Format>(a);
  a.dtype == DType::f32 ? pack_panels<Format, float>(a) : pack_panels<Format, bf16>(a);
}

}  // namespace

void pack(const PackArgs& args) {
  args.view.format == WeightFormat::f32 ? pack_as<float>(args) : pack_as<bf16>(args);
}

AFNEXT_REGISTER(pack, PackArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
