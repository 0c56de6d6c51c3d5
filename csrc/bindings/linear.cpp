#include "afnext/linear.h"

#include "bindings/bindings.h"

namespace afnext::bindings {
namespace {

template <auto function>
void call(py::handle x, py::handle weight, py::handle bias, py::handle out) {
  const Tensor x_(x, "linear", "x"), weight_(weight, "linear", "weight"),
      out_(out, "linear", "out", Access::write);
  const OptionalTensor bias_(bias, "linear", "bias");
  const py::gil_scoped_release release;
  function(x_, weight_, bias_, out_);
}

const Binding binding([](py::module_& m) {
  define<&call<linear>>(m, "linear");
  define<&call<linear_tiles>>(m, "linear_tiles");
});

}  // namespace
}  // namespace afnext::bindings
