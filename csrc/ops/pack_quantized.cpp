#include "afnext/pack_quantized.h"

#include "afnext/error.h"
#include "cpu/huge_pages.h"
#include "cpu/pack_quantized.h"
#include "cuda/backend.h"
#include "cuda/pack.h"

namespace afnext {
namespace {

bool strip(std::string_view& name, std::string_view suffix) {
  if (!name.ends_with(suffix)) return false;
  name.remove_suffix(suffix.size());
  return true;
}

QuantizedFormat format_of(const PackedView& view) {
  return {view.format == WeightFormat::int4 ? 4 : 8, view.group, view.zero_points,
          view.format == WeightFormat::fp8};
}

}  // namespace

bool parse_quantized(std::string_view name, PackedView& view) {
  view.activation_bits = strip(name, ":int8") ? 8 : strip(name, ":auto") ? 0 : 16;
  if (name == "fp8") {
    view.format = WeightFormat::fp8;
    return true;
  }
  view.zero_points = strip(name, "-zp");
  if (name != "int8" && name != "int8-g128" && name != "int4-g128" && name != "int4-g32") {
    return false;
  }
  const QuantizedFormat format = quantized_format("pack", name, view.zero_points);
  view.format = format.bits == 4 ? WeightFormat::int4 : WeightFormat::int8;
  view.group = format.group;
  return true;
}

int64_t quantized_bytes(const PackedView& view) {
  return view.panels() * cpu::QuantizedPanel(view).bytes;
}

void pack_quantized(const QuantizedTensors& tensors, const PackedView& view, Stream stream) {
  Check("pack").require(view.format == WeightFormat::int8 || view.format == WeightFormat::int4 ||
                            view.format == WeightFormat::fp8,
                        "format must be one of quantised weights");
  check_quantized("pack", tensors, format_of(view), view.n, view.k);
  if constexpr (kCuda) {
    if (on_cuda(tensors.values)) {
      if (view.n > 0) cuda::pack_quantized(tensors, view, stream);
      return;
    }
  }
  cpu::expect_huge_pages(view.data, static_cast<size_t>(quantized_bytes(view)));
  cpu::pack_quantized({view, tensors.values.as<const uint8_t>(), tensors.scales.data,
                       tensors.zeros != nullptr ? tensors.zeros->as<const uint8_t>() : nullptr});
}

void unpack_quantized(const PackedView& view, const TensorView& out) {
  Check("unpack").exact(out, "out", DType::f32, {view.n, view.k});
  cpu::unpack_quantized(view, out.as<float>());
}

}  // namespace afnext
