#include "afnext/log_mel.h"

#include <numeric>
#include <vector>

#include "bindings/bindings.h"

namespace afnext::bindings {
namespace {

TensorView offsets(const std::vector<int64_t>& values) {
  TensorView view;
  view.data = const_cast<int64_t*>(values.data());  // a view of inputs is read only
  view.dtype = DType::i64;
  view.ndim = 1;
  view.shape[0] = static_cast<int64_t>(values.size());
  view.stride[0] = 1;
  return view;
}

void call(py::handle samples, const std::vector<int64_t>& cu_samples,
          const std::vector<int64_t>& frames, py::handle out) {
  const Tensor samples_(samples, "log_mel", "samples"), out_(out, "log_mel", "out", Access::write);
  std::vector<int64_t> cu_frames(frames.size() + 1);
  std::partial_sum(frames.begin(), frames.end(), cu_frames.begin() + 1);
  const py::gil_scoped_release release;
  log_mel(samples_, offsets(cu_samples), offsets(cu_frames), out_, samples_.stream());
}

const Binding binding([](py::module_& m) { define<&call>(m, "log_mel"); });

}  // namespace
}  // namespace afnext::bindings
