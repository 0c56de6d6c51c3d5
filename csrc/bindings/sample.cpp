#include "afnext/sample.h"

#include "bindings/bindings.h"

namespace afnext::bindings {
namespace {

void call(py::handle logits, py::handle temperature, py::handle top_k, py::handle top_p,
          py::handle min_p, py::handle uniform, py::handle tokens, py::handle logprobs) {
  const Tensor logits_(logits, "sample", "logits"),
      temperature_(temperature, "sample", "temperature"), top_k_(top_k, "sample", "top_k"),
      top_p_(top_p, "sample", "top_p"), min_p_(min_p, "sample", "min_p"),
      uniform_(uniform, "sample", "uniform"), tokens_(tokens, "sample", "tokens", Access::write),
      logprobs_(logprobs, "sample", "logprobs", Access::write);
  const py::gil_scoped_release release;
  sample(logits_, temperature_, top_k_, top_p_, min_p_, uniform_, tokens_, logprobs_,
         logits_.stream());
}

const Binding binding([](py::module_& m) { define<&call>(m, "sample"); });

}  // namespace
}  // namespace afnext::bindings
