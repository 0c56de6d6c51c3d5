#include <algorithm>
#include <optional>

#include "cuda/arch/call.h"
#include "cuda/dispatch.h"
#include "cuda/packed_linear.h"
#include "cuda/packed_linear_kernel.h"

namespace afnext::cuda {
namespace {

// Parts of K that fill the device, each with a block for every warp at least. Their sums, written
// and read, are to be fewer bytes than weights.
int64_t parts_of(const Device& device, const MmaLayout& layout, int64_t rows) {
  const int64_t resident = (rows <= 16 ? 2 : 1) * device.multiprocessors;
  const int64_t fill = resident / std::max<int64_t>(layout.panels, 1);
  const int64_t deep = layout.blocks / kLinearWarps;
  const int64_t sum_bytes = 2 * static_cast<int64_t>(sizeof(float)) * kPanelRows * rows;
  const int64_t light = layout.blocks * layout.block_bytes / sum_bytes;
  return std::max<int64_t>(std::min({fill, deep, light}), 1);
}

// x as the kernel reads it: where it lies, or a padded copy.
template <typename T>
void place_rows(const Call& call, const TensorView& x, int64_t padded,
                std::optional<Scratch>& scratch, LinearParams* p) {
  constexpr int64_t kFarthest = INT32_MAX / kMaxLinearRows;
  p->x = x.data, p->x_stride = static_cast<int>(x.row_stride());
  if (x.last() == padded && rows_align(x) && x.row_stride() >= 0 && x.row_stride() < kFarthest) {
    return;
  }
  scratch.emplace(call, static_cast<size_t>(p->rows * padded) * sizeof(T));
  const dim3 grid(static_cast<unsigned>((padded + kLinearThreads - 1) / kLinearThreads),
                  static_cast<unsigned>(p->rows));
  call.launch<pad_rows_kernel<T>>(grid, kLinearThreads, 0, x.as<const T>(), x.row_stride(),
                                  static_cast<int>(x.last()), scratch->as<T>(),
                                  static_cast<int>(padded));
  p->x = scratch->as<T>(), p->x_stride = static_cast<int>(padded);
}

template <typename T, typename W, int kColumns>
void multiply(const Call& call, dim3 grid, const LinearParams& p) {
  call.launch<packed_linear_kernel<T, W, kColumns>>(grid, kLinearThreads,
                                                    sizeof(LinearShared<W, kColumns>), p);
}

template <typename T, typename W>
void run(const Call& call, const MmaLayout& layout, const TensorView& x, LinearParams p) {
  std::optional<Scratch> rows, sums;
  place_rows<T>(call, x, layout.blocks * kBlockDepth, rows, &p);
  const int64_t parts = parts_of(call.device(), layout, p.rows);
  p.blocks_each = static_cast<int>((layout.blocks + parts - 1) / parts);
  if (parts > 1) {
    const int64_t count = parts * p.rows * layout.panels * kPanelRows;
    sums.emplace(call, static_cast<size_t>(count) * sizeof(float));
    p.parts = sums->as<float>();
  }
  const dim3 grid(static_cast<unsigned>(layout.panels), static_cast<unsigned>(parts));
  if (p.rows <= 8) {
    multiply<T, W, 1>(call, grid, p);
  } else if (p.rows <= 16) {
    multiply<T, W, 2>(call, grid, p);
  } else if (p.rows <= 32) {
    multiply<T, W, 4>(call, grid, p);
  } else {
    multiply<T, W, 8>(call, grid, p);
  }
  if (parts == 1) return;
  const dim3 columns(
      static_cast<unsigned>((layout.panels * layout.width + kLinearThreads - 1) / kLinearThreads),
      static_cast<unsigned>(p.rows));
  call.launch<add_linear_parts_kernel<T>>(columns, kLinearThreads, 0, p.parts,
                                          static_cast<int>(parts), static_cast<int>(layout.panels),
                                          p.end);
}

}  // namespace

void packed_linear(const TensorView& x, const PackedView& weight, const TensorView* bias,
                   const TensorView* residual, Activation activation, const TensorView& out,
                   Stream stream) {
  const Call call("linear", x, stream);
  const MmaLayout layout(weight);
  LinearParams p{};
  p.values = static_cast<const unsigned char*>(weight.data);
  p.scales = p.values + layout.value_bytes();
  p.group_bytes = layout.scale_bytes;
  p.rows = static_cast<int>(x.rows());
  p.blocks = static_cast<int>(layout.blocks);
  const bool by_row = !MmaLayout::dense(weight.format) && weight.group == 0;
  p.end = {by_row ? reinterpret_cast<const float*>(p.scales) : nullptr,
           bias != nullptr ? bias->data : nullptr,
           residual != nullptr ? residual->data : nullptr,
           out.data,
           static_cast<int>(weight.columns()),
           weight.gate_up,
           activation == Activation::gelu};
  const auto with = [&](auto zero) {
    using T = decltype(zero);
    with_weight<T>(weight, [&](auto kind) { run<T, decltype(kind)>(call, layout, x, p); });
  };
  if (x.dtype == DType::bf16) {
    with(bf16{});
  } else {
    with(f16{});
  }
}

}  // namespace afnext::cuda
