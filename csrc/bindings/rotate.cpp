#include "afnext/rotate.h"

#include "bindings/bindings.h"

namespace afnext::bindings {
namespace {

void call(py::handle x, py::handle times, py::handle inv_freq, py::handle angles, bool interleaved,
          bool inverse, py::handle out) {
  const Tensor x_(x, "rotate", "x"), out_(out, "rotate", "out", Access::write);
  const OptionalTensor times_(times, "rotate", "times"), inv_freq_(inv_freq, "rotate", "inv_freq"),
      angles_(angles, "rotate", "angles");
  const py::gil_scoped_release release;
  rotate(x_, times_, inv_freq_, angles_, interleaved, inverse, out_, x_.stream());
}

const Binding binding([](py::module_& m) { define<&call>(m, "rotate"); });

}  // namespace
}  // namespace afnext::bindings
