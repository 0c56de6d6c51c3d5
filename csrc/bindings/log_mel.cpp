#include "afnext/log_mel.h"

#include "bindings/bindings.h"

namespace afnext::bindings {
namespace {

void call(py::handle samples, py::handle cu_samples, py::handle cu_frames, py::handle out) {
  const Tensor samples_(samples, "log_mel", "samples"),
      cu_samples_(cu_samples, "log_mel", "cu_samples"),
      cu_frames_(cu_frames, "log_mel", "cu_frames"), out_(out, "log_mel", "out");
  const py::gil_scoped_release release;
  log_mel(samples_, cu_samples_, cu_frames_, out_);
}

const Binding binding([](py::module_& m) { define<&call>(m, "log_mel"); });

}  // namespace
}  // namespace afnext::bindings
