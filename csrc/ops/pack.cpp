#include "afnext/pack.h"

#include <string>

#include "afnext/error.h"
#include "afnext/pack_quantized.h"
#include "cpu/huge_pages.h"
#include "cpu/pack.h"

namespace afnext {

constinit cpu::KernelTable<cpu::PackArgs> cpu::pack_kernels;

namespace {

bool is_dense(const PackedView& view) {
  return view.format == WeightFormat::f32 || view.format == WeightFormat::bf16;
}

}  // namespace

PackedView packed_view(const char* op, std::string_view format, int64_t n, int64_t k,
                       bool gate_up) {
  const Check check(op);
  PackedView view;
  if (format == "float32") {
    view.format = WeightFormat::f32;
  } else if (format == "bfloat16") {
    view.format = WeightFormat::bf16;
  } else if (!parse_quantized(format, view)) {
    check.fail("format must be float32, bfloat16, int8, int8-g128, int4-g128 or int4-g32, got '" +
               std::string(format) + "'");
  }
  check.require(n >= 0 && k >= 0, "weight must have sizes of at least 0");
  if (gate_up && n % 2 != 0) {
    check.fail("weight must have an even number of rows for gate_up, got " + std::to_string(n));
  }
  view.n = n, view.k = k, view.gate_up = gate_up;
  return view;
}

int64_t packed_bytes(const PackedView& view) {
  return is_dense(view) ? cpu::dense_bytes(view) : quantized_bytes(view);
}

void pack(const TensorView& weight, const PackedView& view) {
  const Check check("pack");
  check.require(is_dense(view), "format must be float32 or bfloat16 for a plain weight");
  check.floating(weight, "weight", 2);
  check.require(weight.shape[0] == view.n && weight.shape[1] == view.k,
                "weight must be [n, k] of its packing");
  cpu::expect_huge_pages(view.data, static_cast<size_t>(packed_bytes(view)));
  cpu::pack_kernels({view, weight.dtype, weight.data, weight.row_stride(), false});
}

void unpack(const PackedView& view, const TensorView& out) {
  if (!is_dense(view)) return unpack_quantized(view, out);
  const Check check("unpack");
  check.exact(out, "out", view.format == WeightFormat::bf16 ? DType::bf16 : DType::f32,
              {view.n, view.k});
  cpu::pack_kernels({view, out.dtype, out.data, view.k, true});
}

}  // namespace afnext
