#include "afnext/error.h"
#include "afnext/pack_quantized.h"
#include "bindings/bindings.h"
#include "bindings/packed.h"
#include "cpu/huge_pages.h"

namespace afnext::bindings {

static const Binding binding([](py::module_& m) {
  m.def("packed_bytes", [](std::string_view format, int64_t n, int64_t k, bool gate_up, bool cuda) {
    const PackedLayout layout = packed_layout(cuda ? DeviceType::cuda : DeviceType::cpu);
    return packed_bytes(packed_view("pack", format, n, k, gate_up, layout));
  });
  m.def("expect_huge_pages", [](py::handle data) {
    const Tensor data_(data, "pack", "data");
    cpu::expect_huge_pages(data_->data,
                           static_cast<size_t>(data_->numel() * dtype_size(data_->dtype)));
  });
  m.def("pack", [](py::handle weight, std::string_view format, bool gate_up, py::handle data) {
    const Tensor weight_(weight, "pack", "weight"), data_(data, "pack", "data", Access::write);
    Check("pack", weight_).floating(weight_, "weight", 2);
    const PackedView view = packed_tensor("pack", weight_, data_, format, weight_->shape[0],
                                          weight_->shape[1], gate_up);
    const py::gil_scoped_release release;
    pack(weight_, view, weight_.stream());
  });
  m.def("pack_quantized",
        [](py::handle values, py::handle scales, py::handle zeros, std::string_view format,
           int64_t n, int64_t k, bool gate_up, py::handle data) {
          const Tensor values_(values, "pack", "values"), scales_(scales, "pack", "scales"),
              data_(data, "pack", "data", Access::write);
          const OptionalTensor zeros_(zeros, "pack", "zeros");
          const PackedView view = packed_tensor("pack", values_, data_, format, n, k, gate_up);
          const py::gil_scoped_release release;
          pack_quantized({values_, scales_, zeros_}, view, values_.stream());
        });
  m.def("unpack", [](py::handle data, std::string_view format, int64_t n, int64_t k, bool gate_up,
                     py::handle out) {
    const Tensor data_(data, "unpack", "data"), out_(out, "unpack", "out", Access::write);
    const PackedView view = packed_tensor("unpack", data_, data_, format, n, k, gate_up);
    const py::gil_scoped_release release;
    unpack(view, out_, data_.stream());
  });
});

}  // namespace afnext::bindings
