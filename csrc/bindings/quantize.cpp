#include "afnext/quantize.h"

#include "bindings/bindings.h"

namespace afnext::bindings {

static const Binding binding([](py::module_& m) {
  m.def("quantize", [](py::handle weight, std::string_view format, py::handle values,
                       py::handle scales, py::handle zeros) {
    constexpr const char* op = "quantize";
    const Tensor weight_(weight, op, "weight"), values_(values, op, "values", Access::write),
        scales_(scales, op, "scales", Access::write);
    const OptionalTensor zeros_(zeros, op, "zeros", Access::write);
    const QuantizedFormat parsed = quantized_format(op, format, !zeros.is_none());
    const py::gil_scoped_release release;
    quantize(weight_, parsed, {values_, scales_, zeros_});
  });
});

}  // namespace afnext::bindings
