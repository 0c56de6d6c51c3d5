#include <algorithm>
#include <optional>

#include "cuda/arch/call.h"
#include "cuda/dispatch.h"
#include "cuda/packed_linear.h"
#include "cuda/packed_linear_narrow.h"
#include "cuda/packed_linear_wide.h"

namespace afnext::cuda {
namespace {

unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>((threads + kLinearThreads - 1) / kLinearThreads);
}

// x as the kernels read it: where it lies, or a padded copy.
template <typename T>
void place_rows(const Call& call, const TensorView& x, int64_t padded,
                std::optional<Scratch>& scratch, LinearParams* p) {
  constexpr int64_t kFarthest = INT32_MAX / kMaxLinearRows;
  p->x = x.data, p->x_stride = static_cast<int>(x.row_stride());
  if (x.last() == padded && rows_align(x) && x.row_stride() >= 0 && x.row_stride() < kFarthest) {
    return;
  }
  scratch.emplace(call, static_cast<size_t>(p->rows * padded) * sizeof(T));
  const dim3 grid(blocks_for(padded), static_cast<unsigned>(p->rows));
  call.launch<pad_rows_kernel<T>>(grid, kLinearThreads, 0, x.as<const T>(), x.row_stride(),
                                  static_cast<int>(x.last()), scratch->as<T>(),
                                  static_cast<int>(padded));
  p->x = scratch->as<T>(), p->x_stride = static_cast<int>(padded);
}

// `each` tiles to every block of threads, `resident` blocks to every multiprocessor: where they
// need less shared memory than keeps more from meeting there, they take it.
template <typename T, typename W, int most>
void launch_narrow(const Call& call, NarrowParams p, int resident) {
  const int sums_of_tile = kNarrowWarps * p.linear.rows * kTileRows;
  p.batch = std::min(p.each, kNarrowSums / sums_of_tile);
  size_t shared = static_cast<size_t>(p.batch) * sums_of_tile * sizeof(float);
  if (resident < most) {
    shared = std::max(shared, call.device().shared_bytes / (resident + 1) + 1);
  }
  const int blocks = (p.linear.tiles + p.each - 1) / p.each;
  call.launch_early<packed_linear_narrow_kernel<T, W, most>>(dim3(static_cast<unsigned>(blocks)),
                                                             kNarrowThreads, shared, p);
}

// As many blocks of threads to each multiprocessor as give all the same number of tiles, or nearly.
template <typename T, typename W>
void multiply_narrow(const Call& call, const LinearParams& linear) {
  NarrowParams p{linear, linear.tiles, 1};
  int resident = 0;
  double best = 0;
  for (int r = kNarrowResident<W>; r > 0; --r) {
    const int blocks = r * call.device().multiprocessors;
    const int each = (linear.tiles + blocks - 1) / blocks;
    const double busy = static_cast<double>(linear.tiles) / (static_cast<double>(each) * blocks);
    if (busy > best) best = busy, resident = r, p.each = each;
  }
  if constexpr (kNarrowResident<W> > 2) {
    if (resident > 2) return launch_narrow<T, W, kNarrowResident<W>>(call, p, resident);
  }
  launch_narrow<T, W, 2>(call, p, resident);
}

// As many pieces of W as give every multiprocessor the same number are multiplied whole. Those that
// are left share K among blocks of threads, two to a multiprocessor or as many as have room beside
// the others, each with some depth at least.
template <typename T, typename W, int kColumns>
void multiply_wide(const Call& call, const LinearParams& linear) {
  constexpr int kLeastSteps = kColumns > 2 ? 4 : 6;
  const int multiprocessors = call.device().multiprocessors;
  const int pieces = (linear.tiles + kWideTilesOfBlock - 1) / kWideTilesOfBlock;
  const int whole_each = pieces / multiprocessors;
  const int room = kWideResident - whole_each % kWideResident;
  WideParams p{linear};
  p.whole = whole_each * multiprocessors;
  const int shared = std::max(pieces - p.whole, 1);
  p.parts = std::max(1, std::min(room * multiprocessors / shared, linear.steps / kLeastSteps));
  if (p.parts == 1) p.whole = pieces;
  p.steps_each = (linear.steps + p.parts - 1) / p.parts;
  p.sums_stride = (pieces - p.whole) * kWideRows;
  const Scratch sums(call, static_cast<size_t>(p.parts) * linear.rows * p.sums_stride * 4);
  p.sums = sums.as<float>();
  const int blocks = p.whole + (pieces - p.whole) * p.parts;
  call.launch_early<packed_linear_wide_kernel<T, W, kColumns>>(
      dim3(static_cast<unsigned>(blocks)), kWideThreads, sizeof(WideShared<W, kColumns>), p);
  if (p.whole == pieces) return;
  const dim3 columns(blocks_for(p.sums_stride), static_cast<unsigned>(linear.rows));
  call.launch_early<add_linear_parts_kernel<T, W>>(columns, kLinearThreads, 0, p);
}

template <typename T, typename W>
void run(const Call& call, const MmaLayout& layout, const TensorView& x, LinearParams p) {
  std::optional<Scratch> rows;
  place_rows<T>(call, x, layout.steps * kStepDepth, rows, &p);
  if (p.rows <= kNarrowRows) {
    multiply_narrow<T, W>(call, p);
  } else if (p.rows <= 16) {
    multiply_wide<T, W, 2>(call, p);
  } else if (p.rows <= 32) {
    multiply_wide<T, W, 4>(call, p);
  } else {
    multiply_wide<T, W, 8>(call, p);
  }
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
  p.rows = static_cast<int>(x.rows());
  p.tiles = static_cast<int>(layout.tiles), p.steps = static_cast<int>(layout.steps);
  p.end = {bias != nullptr ? bias->data : nullptr,
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
