#include <pybind11/pybind11.h>

#include "bindings/bindings.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() =
      "afnext's kernels. Use them through afnext.ops, which checks, allocates and differentiates.";
  m.attr("__version__") = AFNEXT_VERSION;
  m.attr("compiled_isas") = py::cast(AFNEXT_COMPILED_ISAS);
  m.attr("has_cuda") = false;

  m.def("isa", [] { return afnext::cpu::isa_name(afnext::cpu::active_isa()); });
  m.def("detected_isa", [] { return afnext::cpu::isa_name(afnext::cpu::detected_isa()); });
  m.def("can_run", [](const char* name) { return afnext::cpu::can_run(name); });
  m.def("set_isa", [](const char* name) { afnext::cpu::set_isa(name); });
  m.def("num_threads", [] { return afnext::cpu::num_threads(); });
  m.def("set_num_threads", [](int threads) { afnext::cpu::set_num_threads(threads); });
  // Reads its arguments as an op would and does nothing: the floor of a call's cost.
  m.def("empty", [](const py::args& tensors) {
    for (py::handle t : tensors) afnext::bindings::Tensor(t, "empty", "tensors");
  });

  using afnext::bindings::Binding;
  for (const Binding* b = Binding::head; b != nullptr; b = b->next) b->bind(m);
}
