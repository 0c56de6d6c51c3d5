#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "afnext/runtime.h"
#include "bindings/bindings.h"
#include "cuda/backend.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() =
      "afnext's kernels. Use them through afnext.ops, which checks, allocates and differentiates.";
  m.attr("__version__") = AFNEXT_VERSION;
  m.attr("has_cuda") = afnext::kCuda;

  m.def("isa", &afnext::cpu_isa);
  m.def("detected_isa", &afnext::detected_cpu_isa);
  m.def("compiled_isas", &afnext::compiled_cpu_isas);
  m.def("can_run", &afnext::can_run_cpu_isa);
  m.def("set_isa", &afnext::set_cpu_isa);
  m.def("num_threads", &afnext::num_threads);
  m.def("set_num_threads", &afnext::set_num_threads);
  // Reads its arguments as an op would and does nothing: the floor of a call's cost.
  m.def("empty", [](const py::args& tensors) {
    for (py::handle t : tensors) afnext::bindings::Tensor(t, "empty", "tensors");
  });

  using afnext::bindings::Binding;
  for (const Binding* b = Binding::head; b != nullptr; b = b->next) b->bind(m);
}
