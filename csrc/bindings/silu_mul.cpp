#include "afnext/silu_mul.h"

#include "bindings/bindings.h"

namespace afnext::bindings {
namespace {

void call(py::handle gate, py::handle up, py::handle out) {
  const Tensor gate_(gate, "silu_mul", "gate"), up_(up, "silu_mul", "up"),
      out_(out, "silu_mul", "out", Access::write);
  const py::gil_scoped_release release;
  silu_mul(gate_, up_, out_, gate_.stream());
}

const Binding binding([](py::module_& m) { define<&call>(m, "silu_mul"); });

}  // namespace
}  // namespace afnext::bindings
