// Weights into layout "mma-v2" (cuda/packed_layout.h), once when a model is loaded, a thread for
// each 32-bit word; and out of it, for products with many rows of x: reads of 16 bytes a lane,
// writes of 64 bytes a row (32 elements of 16 bits), n k (b + 2) bytes in all. 14 to 36 registers
// into the layout, up to 48 out of it, no shared memory: five blocks of 256 threads a
// multiprocessor or more, 40 warps with 1 to 4 KB each on their way, where an H200 asks for 26 KB
// in all.
#include "cuda/arch/call.h"
#include "cuda/dispatch.h"
#include "cuda/pack.h"
#include "cuda/packed_fragments.h"

namespace afnext::cuda {
namespace {

constexpr int kThreads = 256;

// The plain weight, as the kernels here see it.
struct Shape {
  int64_t n, k, tiles, steps;
  int width;  // columns of the output in a tile
  bool gate_up;

  // The row of the plain weight in `row` of `tile`, or -1.
  AFNEXT_DEVICE int64_t row(int64_t tile, int row) const {
    const int64_t columns = gate_up ? n / 2 : n;
    const int64_t index = tile * width + row % width;
    if (index >= columns) return -1;
    return row < width ? index : columns + index;
  }
};

Shape shape_of(const PackedView& view, const MmaLayout& layout) {
  return {view.n, view.k, layout.tiles, layout.steps, static_cast<int>(layout.width), view.gate_up};
}

dim3 grid_of(int64_t threads) {
  return dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads));
}

AFNEXT_DEVICE int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

// Where a 32-bit word of the values stands.
struct Word {
  int64_t tile, step;
  int piece, lane, word;

  AFNEXT_DEVICE Word(int64_t index, int64_t steps, int pieces) {
    word = static_cast<int>(index % 4), index /= 4;
    lane = static_cast<int>(index % arch::kWarp), index /= arch::kWarp;
    piece = static_cast<int>(index % pieces), index /= pieces;
    step = index % steps, tile = index / steps;
  }
  // Of the element in half h of register i of `product` with `block`: row of the tile, and K.
  AFNEXT_DEVICE int row(int i) const { return lane / 4 + 8 * (i % 2); }
  AFNEXT_DEVICE int64_t k(int block, int product, int i, int h) const {
    return step * kStepDepth + block * kBlockDepth + lane % 4 * 8 + product * 4 + i / 2 * 2 + h;
  }
};

template <typename From, typename T>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const From* weight, int64_t stride, Shape shape, uint32_t* out) {
  using W = Weight<Dense<T>, 0, false>;
  const int64_t index = thread_index();
  if (index >= shape.tiles * shape.steps * W::kStepBytes / 4) return;
  const Word at(index, shape.steps, W::Values::kPieces);
  const int64_t row = shape.row(at.tile, at.row(at.word));
  float values[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int64_t k = at.k(at.piece / 2, at.piece % 2, at.word, h);
    values[h] = row >= 0 && k < shape.k ? arch::to_float(weight[row * stride + k]) : 0.0f;
  }
  out[index] = arch::pack(values[0], values[1], T{});
}

// Bytes of int8 and fp8, nibbles of int4.
template <typename W>
__global__ void __launch_bounds__(kThreads)
    pack_values_kernel(const uint8_t* values, Shape shape, uint32_t* out) {
  constexpr bool kNibbles = W::Values::kPieces == 2;
  constexpr int kElements = kNibbles ? 8 : 4, kBits = kNibbles ? 4 : 8;
  constexpr uint32_t kMissing = kNibbles && !W::kZeroPoints ? 8 : 0;
  const int64_t index = thread_index();
  if (index >= shape.tiles * shape.steps * W::kStepBytes / 4) return;
  const Word at(index, shape.steps, W::Values::kPieces);
  const int block = kNibbles ? 2 * at.piece + at.word / 2 : at.piece;
  const int product = kNibbles ? at.word % 2 : at.word / 2;
  uint32_t word = 0;
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    const int i = kNibbles ? e % 4 : at.word % 2 * 2 + e % 2;
    const int64_t row = shape.row(at.tile, at.row(i));
    const int64_t k = at.k(block, product, i, kNibbles ? e / 4 : e / 2);
    uint32_t value = kMissing;
    if (row >= 0 && k < shape.k) {
      value = kNibbles ? values[row * ((shape.k + 1) / 2) + k / 2] >> (k % 2 * 4) & 15
                       : values[row * shape.k + k];
    }
    word |= value << kBits * e;
  }
  out[index] = word;
}

__global__ void __launch_bounds__(kThreads)
    pack_row_scales_kernel(const float* scales, Shape shape, float* out) {
  const int64_t index = thread_index();
  if (index >= shape.tiles * kTileRows) return;
  const int64_t row = shape.row(index / kTileRows, static_cast<int>(index % kTileRows));
  out[index] = row >= 0 ? scales[row] : 0.0f;
}

// groups: of the plain weight; each: of a step. zeros may be null.
__global__ void __launch_bounds__(kThreads)
    pack_group_scales_kernel(const uint16_t* scales, const uint8_t* zeros, Shape shape,
                             int64_t groups, int each, uint16_t* out) {
  const int64_t index = thread_index();
  if (index >= shape.tiles * shape.steps * each * kTileRows) return;
  int64_t place = index;  // [tile][step][row 8][group][row + 8]
  const auto half = static_cast<int>(place % 2);
  place /= 2;
  const int64_t group_of_step = place % each;
  place /= each;
  const auto row_of_tile = static_cast<int>(place % 8) + 8 * half;
  place /= 8;
  const int64_t group = place % shape.steps * each + group_of_step;
  const int64_t row = shape.row(place / shape.steps, row_of_tile);
  const bool there = row >= 0 && group < groups;
  const uint16_t scale = there ? scales[row * groups + group] : 0;
  if (zeros == nullptr) {
    out[index] = scale;
  } else {
    out[2 * index] = scale;
    out[2 * index + 1] = there ? zeros[row * groups + group] : 0;
  }
}

// 8 elements of a row.
template <typename To>
AFNEXT_DEVICE void write(To* to, const float (&values)[8], int64_t count, bool wide) {
  struct alignas(16) Piece {
    To at[16 / sizeof(To)];
  };
  constexpr int kEach = 16 / sizeof(To);
  if (wide) {
    if (count <= 0) return;
#pragma unroll
    for (int i = 0; i < 8; i += kEach) {
      Piece piece;
#pragma unroll
      for (int j = 0; j < kEach; ++j) piece.at[j] = arch::rounded<To>(values[i + j]);
      *reinterpret_cast<Piece*>(to + i) = piece;
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < count) to[i] = arch::rounded<To>(values[i]);
    }
  }
}

// A warp a tile's step, a block of threads kThreads / 32 of them. wide: pieces of a row are whole
// and aligned.
template <typename T, typename W, typename To>
__global__ void __launch_bounds__(kThreads)
    unpack_kernel(const unsigned char* data, Shape shape, int64_t value_bytes, int64_t scale_bytes,
                  To* out, bool wide) {
  const int lane = threadIdx.x % arch::kWarp;
  const int64_t index = thread_index() / arch::kWarp;
  if (index >= shape.tiles * shape.steps) return;
  const int64_t tile = index / shape.steps, step = index % shape.steps;
  const auto* values = reinterpret_cast<const uint4*>(data + index * W::kStepBytes) + lane;
  const unsigned char* scales = data + value_bytes + tile * scale_bytes;
  const unsigned char* mine = scales + (step * 8 + lane / 4) * W::kScaleBytes;
#pragma unroll
  for (int block = 0; block < kStepBlocks; ++block) {
    const int64_t k = step * kStepDepth + block * kBlockDepth + lane % 4 * 8;
    Scales group;
    if constexpr (W::kGroup > 0) {
      group = group_scales<T, W>(mine, block * W::kGroups / kStepBlocks);
    }
    const Operands a = W::Values::template operands<T>(values, block, group.offsets);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row_of_tile = lane / 4 + 8 * h;
      const int64_t row = shape.row(tile, row_of_tile);
      float scale = 1;
      if constexpr (W::kGroup > 0) {
        scale = group.row[h];
      } else if constexpr (W::Values::kScaled) {
        scale = reinterpret_cast<const float*>(scales)[row_of_tile];
      }
      float elements[8];
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        const float2 both = arch::unpack(a.product[pair / 2][h + pair % 2 * 2], T{});
        elements[2 * pair] = both.x * scale, elements[2 * pair + 1] = both.y * scale;
      }
      if (row >= 0) write(out + row * shape.k + k, elements, shape.k - k, wide);
    }
  }
}

// Products start while the kernel before them still runs, and read packed weights without a wait
// for it. Launched plainly behind packing, this one waits until that has ended and can be seen: who
// starts early starts behind it.
__global__ void packed_kernel() {}

template <typename T>
void pack_as(const Call& call, const TensorView& weight, const PackedView& view) {
  const MmaLayout layout(view);
  const dim3 grid = grid_of(layout.value_bytes() / 4);
  with_dtype(weight.dtype, [&](auto zero) {
    using From = decltype(zero);
    call.launch<pack_kernel<From, T>>(grid, kThreads, 0, weight.as<const From>(),
                                      weight.row_stride(), shape_of(view, layout),
                                      static_cast<uint32_t*>(view.data));
  });
}

template <typename T, typename W>
void unpack_from(const Call& call, const PackedView& view, const TensorView& out) {
  const MmaLayout layout(view);
  with_dtype(out.dtype, [&](auto zero) {
    using To = decltype(zero);
    call.launch<unpack_kernel<T, W, To>>(
        grid_of(layout.tiles * layout.steps * arch::kWarp), kThreads, 0,
        static_cast<const unsigned char*>(view.data), shape_of(view, layout), layout.value_bytes(),
        layout.scale_bytes, out.as<To>(), rows_align(out) && view.k % 8 == 0);
  });
}

}  // namespace

void pack(const TensorView& weight, const PackedView& view, Stream stream) {
  const Call call("pack", weight, stream);
  if (view.format == WeightFormat::f16) {
    pack_as<f16>(call, weight, view);
  } else {
    pack_as<bf16>(call, weight, view);
  }
  call.launch<packed_kernel>(1, arch::kWarp, 0);
}

void pack_quantized(const QuantizedTensors& tensors, const PackedView& view, Stream stream) {
  const Call call("pack", tensors.values, stream);
  const MmaLayout layout(view);
  const Shape shape = shape_of(view, layout);
  auto* data = static_cast<unsigned char*>(view.data);
  with_weight<bf16>(view, [&](auto kind) {
    using W = decltype(kind);
    if constexpr (W::Values::kScaled) {
      call.launch<pack_values_kernel<W>>(grid_of(layout.value_bytes() / 4), kThreads, 0,
                                         tensors.values.as<const uint8_t>(), shape,
                                         reinterpret_cast<uint32_t*>(data));
    }
  });
  unsigned char* scales = data + layout.value_bytes();
  if (view.group == 0) {
    call.launch<pack_row_scales_kernel>(grid_of(layout.tiles * kTileRows), kThreads, 0,
                                        tensors.scales.as<const float>(), shape,
                                        reinterpret_cast<float*>(scales));
  } else {
    call.launch<pack_group_scales_kernel>(
        grid_of(layout.tiles * layout.steps * layout.step_groups * kTileRows), kThreads, 0,
        tensors.scales.as<const uint16_t>(),
        tensors.zeros != nullptr ? tensors.zeros->as<const uint8_t>() : nullptr, shape,
        (view.k + view.group - 1) / view.group, static_cast<int>(layout.step_groups),
        reinterpret_cast<uint16_t*>(scales));
  }
  call.launch<packed_kernel>(1, arch::kWarp, 0);
}

void unpack(const PackedView& view, const TensorView& out, Stream stream) {
  const Call call("unpack", out, stream);
  if (view.format == WeightFormat::f16) {
    return unpack_from<f16, Weight<Dense<f16>, 0, false>>(call, view, out);
  }
  with_weight<bf16>(view, [&](auto kind) { unpack_from<bf16, decltype(kind)>(call, view, out); });
}

}  // namespace afnext::cuda
