#include "afnext/merge_attention.h"

#include "bindings/bindings.h"

namespace afnext::bindings {
namespace {

void call(py::handle out_a, py::handle lse_a, py::handle out_b, py::handle lse_b, py::handle out,
          py::handle lse) {
  const Tensor out_a_(out_a, "merge_attention", "out_a"), lse_a_(lse_a, "merge_attention", "lse_a"),
      out_b_(out_b, "merge_attention", "out_b"), lse_b_(lse_b, "merge_attention", "lse_b"),
      out_(out, "merge_attention", "out", Access::write),
      lse_(lse, "merge_attention", "lse", Access::write);
  const py::gil_scoped_release release;
  merge_attention(out_a_, lse_a_, out_b_, lse_b_, out_, lse_, out_a_.stream());
}

const Binding binding([](py::module_& m) { define<&call>(m, "merge_attention"); });

}  // namespace
}  // namespace afnext::bindings
