#include "afnext/paged_append.h"

#include "bindings/bindings.h"

namespace afnext::bindings {
namespace {

void append(py::handle k, py::handle v, py::handle k_pages, py::handle v_pages,
            py::handle page_table, py::handle cu_seqlens, py::handle start, py::handle times,
            py::handle inv_freq, bool interleaved, py::handle k_scales, py::handle v_scales) {
  constexpr const char* op = "paged_append";
  const Tensor k_(k, op, "k"), v_(v, op, "v"), k_pages_(k_pages, op, "k_pages", Access::write),
      v_pages_(v_pages, op, "v_pages", Access::write), page_table_(page_table, op, "page_table"),
      cu_seqlens_(cu_seqlens, op, "cu_seqlens"), start_(start, op, "start");
  const OptionalTensor times_(times, op, "rotation times"),
      inv_freq_(inv_freq, op, "rotation inv_freq"),
      k_scales_(k_scales, op, "k_scales", Access::write),
      v_scales_(v_scales, op, "v_scales", Access::write);
  const py::gil_scoped_release release;
  paged_append(k_, v_, k_pages_, v_pages_, page_table_, cu_seqlens_, start_, times_, inv_freq_,
               interleaved, k_scales_, v_scales_, k_.stream());
}

const Binding binding([](py::module_& m) { define<&append>(m, "paged_append"); });

}  // namespace
}  // namespace afnext::bindings
