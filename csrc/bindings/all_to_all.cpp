#include "afnext/all_to_all.h"

#include "bindings/bindings.h"

namespace afnext::bindings {
namespace {

void pack(py::handle x, const std::vector<int64_t>& head_offsets, const std::vector<int64_t>& heads,
          py::handle out, const std::vector<int64_t>& peers, int64_t first_token) {
  const Tensor x_(x, "all_to_all_pack", "x");
  const OptionalTensor out_(out, "all_to_all_pack", "out", Access::write);
  const py::gil_scoped_release release;
  all_to_all_pack(x_, {head_offsets, heads}, {peers, first_token}, out_, x_.stream());
}

void unpack(py::handle x, const std::vector<int64_t>& head_offsets,
            const std::vector<int64_t>& heads, py::handle out, const std::vector<int64_t>& peers,
            int64_t first_token) {
  const Tensor out_(out, "all_to_all_unpack", "out", Access::write);
  const OptionalTensor x_(x, "all_to_all_unpack", "x");
  const py::gil_scoped_release release;
  all_to_all_unpack(x_, {head_offsets, heads}, {peers, first_token}, out_, out_.stream());
}

const Binding binding([](py::module_& m) {
  define<&pack>(m, "all_to_all_pack");
  define<&unpack>(m, "all_to_all_unpack");
});

}  // namespace
}  // namespace afnext::bindings
