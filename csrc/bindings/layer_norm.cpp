#include "afnext/layer_norm.h"

#include "bindings/bindings.h"

namespace afnext::bindings {
namespace {

void call(py::handle x, py::handle weight, py::handle bias, double eps, py::handle pooled,
          py::handle out) {
  const Tensor x_(x, "layer_norm", "x"), weight_(weight, "layer_norm", "weight"),
      bias_(bias, "layer_norm", "bias"), out_(out, "layer_norm", "out", Access::write);
  const OptionalTensor pooled_(pooled, "layer_norm", "pooled");
  const py::gil_scoped_release release;
  layer_norm(x_, weight_, bias_, eps, pooled_, out_, x_.stream());
}

const Binding binding([](py::module_& m) { define<&call>(m, "layer_norm"); });

}  // namespace
}  // namespace afnext::bindings
