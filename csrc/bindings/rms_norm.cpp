#include "afnext/rms_norm.h"

#include "bindings/bindings.h"

namespace afnext::bindings {
namespace {

void call(py::handle x, py::handle residual, py::handle weight, double eps, py::handle out,
          py::handle total) {
  const Tensor x_(x, "rms_norm", "x"), weight_(weight, "rms_norm", "weight"),
      out_(out, "rms_norm", "out", Access::write);
  const OptionalTensor residual_(residual, "rms_norm", "residual"),
      total_(total, "rms_norm", "total", Access::write);
  const py::gil_scoped_release release;
  rms_norm(x_, residual_, weight_, eps, out_, total_, x_.stream());
}

const Binding binding([](py::module_& m) { define<&call>(m, "rms_norm"); });

}  // namespace
}  // namespace afnext::bindings
