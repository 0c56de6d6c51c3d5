#include "afnext/pack.h"

#include <string>

#include "afnext/error.h"
#include "afnext/pack_quantized.h"
#include "cpu/huge_pages.h"
#include "cpu/pack.h"
#include "cuda/backend.h"
#include "cuda/pack.h"
#include "cuda/packed_layout.h"

namespace afnext {

constinit cpu::KernelTable<cpu::PackArgs> cpu::pack_kernels;

namespace {

bool is_dense(const PackedView& view) {
  return view.format == WeightFormat::f32 || view.format == WeightFormat::bf16 ||
         view.format == WeightFormat::f16;
}

// Whether weights of this format exist in this layout.
bool exists(WeightFormat format, PackedLayout layout) {
  if (layout == PackedLayout::mma) return format != WeightFormat::f32;
  return format != WeightFormat::f16 && format != WeightFormat::fp8;
}

[[noreturn]] void refuse(const Check& check, std::string_view format, PackedLayout layout) {
  const bool mma = layout == PackedLayout::mma;
  check.fail(std::string("format must be ") + (mma ? "float16" : "float32") +
             ", bfloat16, int8, int8-g128, int4-g128" +
             (mma ? ", int4-g32 or fp8 on cuda" : " or int4-g32") + ", got '" +
             std::string(format) + "'");
}

DType plain_dtype(WeightFormat format) {
  return format == WeightFormat::bf16  ? DType::bf16
         : format == WeightFormat::f16 ? DType::f16
                                       : DType::f32;
}

}  // namespace

PackedLayout packed_layout(DeviceType device) {
  return kCuda && device == DeviceType::cuda ? PackedLayout::mma : PackedLayout::panels32;
}

PackedView packed_view(const char* op, std::string_view format, int64_t n, int64_t k, bool gate_up,
                       PackedLayout layout) {
  const Check check(op);
  PackedView view;
  if (format == "float32") {
    view.format = WeightFormat::f32;
  } else if (format == "bfloat16") {
    view.format = WeightFormat::bf16;
  } else if (format == "float16") {
    view.format = WeightFormat::f16;
  } else if (!parse_quantized(format, view)) {
    refuse(check, format, layout);
  }
  if (!exists(view.format, layout)) refuse(check, format, layout);
  check.require(n >= 0 && k >= 0, "weight must have sizes of at least 0");
  if (gate_up && n % 2 != 0) {
    check.fail("weight must have an even number of rows for gate_up, got " + std::to_string(n));
  }
  view.n = n, view.k = k, view.gate_up = gate_up, view.layout = layout;
  return view;
}

int64_t packed_bytes(const PackedView& view) {
  if (view.layout == PackedLayout::mma) return cuda::MmaLayout(view).bytes();
  return is_dense(view) ? cpu::dense_bytes(view) : quantized_bytes(view);
}

void pack(const TensorView& weight, const PackedView& view, Stream stream) {
  const Check check("pack", weight);
  check.require(is_dense(view), "format must be float32 or bfloat16 for a plain weight");
  check.floating(weight, "weight", 2);
  check.require(weight.shape[0] == view.n && weight.shape[1] == view.k,
                "weight must be [n, k] of its packing");
  check.require(view.layout == packed_layout(weight.device), "data must be on weight's device");
  if constexpr (kCuda) {
    if (on_cuda(weight)) {
      if (weight.numel() > 0) cuda::pack(weight, view, stream);
      return;
    }
  }
  cpu::expect_huge_pages(view.data, static_cast<size_t>(packed_bytes(view)));
  cpu::pack_kernels({view, weight.dtype, weight.data, weight.row_stride(), false});
}

void unpack(const PackedView& view, const TensorView& out, Stream stream) {
  if constexpr (kCuda) {
    if (on_cuda(out)) {
      const Check check("unpack", out);
      check.floating(out, "out", 2);
      check.exact(out, "out", out.dtype, {view.n, view.k});
      check.require(view.layout == PackedLayout::mma, "data must be on out's device");
      if (out.numel() > 0) cuda::unpack(view, out, stream);
      return;
    }
  }
  Check("unpack").require(view.layout == PackedLayout::panels32, "out must be on data's device");
  if (!is_dense(view)) return unpack_quantized(view, out);
  const Check check("unpack");
  check.exact(out, "out", plain_dtype(view.format), {view.n, view.k});
  cpu::pack_kernels({view, out.dtype, out.data, view.k, true});
}

}  // namespace afnext
