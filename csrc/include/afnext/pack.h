// Weights of linear layers, packed once into the order in which kernels read them: layout
// "panels32-v1" on the CPU, "mma-v2" (csrc/cuda/packed_layout.h describes it) on CUDA devices.
//
// Layout "panels32-v1", the same for every instruction set. A panel holds 32 output columns (rows
// of the weight) and is a run of steps of 128 bytes, a 32-bit word for each column:
//
//   float32    [panel][K][32]          a word is one element
//   bfloat16   [panel][K / 2][32][2]   a word is a pair of neighbours in K, the even one first
//
// and int8 and int4 as afnext/pack_quantized.h describes.
//
// A step is thus two registers of AVX-512, or a row each of two AMX tiles, and every kernel reads
// forward. Columns that are missing from the last panel are zero; K is padded with zeros to a
// multiple of 32 for bfloat16 (the depth of an AMX tile).
//
// A `gate_up` weight is [2 * F, K], F rows of the gate and then F rows of the up projection. Its
// panels hold 16 gate columns and the 16 up columns that belong to them, so that one tile of the
// product has all that silu(gate) * up needs.
#pragma once

#include <cstdint>
#include <string_view>

#include "afnext/tensor.h"

namespace afnext {

// f32 on the CPU alone, f16 and fp8 (e4m3, finite, a float32 scale for each row) on CUDA alone.
enum class WeightFormat : uint8_t { f32, bf16, f16, int8, int4, fp8 };
enum class PackedLayout : uint8_t { panels32, mma };

constexpr int64_t kPanelColumns = 32;
constexpr int64_t kStepBytes = 4 * kPanelColumns;

struct PackedView {
  WeightFormat format = WeightFormat::f32;
  PackedLayout layout = PackedLayout::panels32;
  int64_t n = 0, k = 0;      // the plain weight is [n, k]
  int64_t group = 0;         // elements of K that share a scale; 0: a whole row (quantised formats)
  bool zero_points = false;  // a group has a zero point beside its scale (quantised formats)
  // Of the integers that x becomes (quantised formats): 8, 16, or 0 to choose at every call. Of no
  // effect in layout mma, whose products take x as it is.
  int activation_bits = 16;
  bool gate_up = false;
  void* data = nullptr;  // aligned to 64 bytes

  // Columns of the output: n, or F of a gate_up weight.
  int64_t columns() const { return gate_up ? n / 2 : n; }
  // Of layout panels32: columns of the output that a panel serves.
  int64_t panel_width() const { return gate_up ? kPanelColumns / 2 : kPanelColumns; }
  int64_t panels() const { return (columns() + panel_width() - 1) / panel_width(); }
  // The row of the plain weight in `column` of `panel`, or -1.
  int64_t row(int64_t panel, int64_t column) const {
    const int64_t width = panel_width(), index = panel * width + column % width;
    if (index >= columns()) return -1;
    return column < width ? index : columns() + index;
  }
};

// The layout of packed weights on a device of this build.
PackedLayout packed_layout(DeviceType device);

// A view without data for the format of this name ("float32", "bfloat16", ..), for errors of `op`.
PackedView packed_view(const char* op, std::string_view format, int64_t n, int64_t k, bool gate_up,
                       PackedLayout layout = PackedLayout::panels32);

// Bytes of `view.data`.
int64_t packed_bytes(const PackedView& view);

// Fills `view.data` from weight [n, k] of float32 or bfloat16 (on CUDA also float16), rows at any
// distance. Needs no memory beside it.
void pack(const TensorView& weight, const PackedView& view, Stream stream = {});

// The plain weight again: out is a contiguous [n, k] of the format's dtype (quantised: float32), on
// CUDA of float32, bfloat16 or float16. Exact for dense formats in their own dtype.
void unpack(const PackedView& view, const TensorView& out, Stream stream = {});

}  // namespace afnext
