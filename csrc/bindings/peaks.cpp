#include "afnext/peaks.h"

#include <string>

#include "afnext/error.h"
#include "bindings/bindings.h"

namespace afnext::bindings {
namespace {

DType arithmetic_dtype(const std::string& name) {
  if (name == "float32") return DType::f32;
  if (name == "bfloat16") return DType::bf16;
  if (name == "int8") return DType::i8;
  throw Error("peak_arithmetic: dtype must be float32, bfloat16 or int8, got '" + name + "'");
}

const Binding binding([](py::module_& m) {
  m.def("peak_read", [](py::handle buffer) {
    const Tensor buffer_(buffer, "peak_read", "buffer");
    const py::gil_scoped_release release;
    return peak_read(buffer_);
  });
  m.def("peak_arithmetic", [](const std::string& dtype, py::handle operands, int64_t steps) {
    const Tensor operands_(operands, "peak_arithmetic", "operands");
    const DType dtype_ = arithmetic_dtype(dtype);
    const py::gil_scoped_release release;
    return peak_arithmetic(dtype_, operands_, steps);
  });
});

}  // namespace
}  // namespace afnext::bindings
