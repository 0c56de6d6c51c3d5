#include "afnext/log_mel.h"

#include "bindings/bindings.h"

namespace afnext::bindings {

static const Binding binding([](py::module_& m) {
  m.def("log_mel",
        [](py::handle samples, py::handle cu_samples, py::handle cu_frames, py::handle out) {
          const Tensor samples_(samples, "log_mel", "samples"),
              cu_samples_(cu_samples, "log_mel", "cu_samples"),
              cu_frames_(cu_frames, "log_mel", "cu_frames"), out_(out, "log_mel", "out");
          const py::gil_scoped_release release;
          log_mel(samples_, cu_samples_, cu_frames_, out_);
        });
});

}  // namespace afnext::bindings
