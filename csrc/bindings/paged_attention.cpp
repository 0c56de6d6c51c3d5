#include "afnext/paged_attention.h"

#include "bindings/bindings.h"

namespace afnext::bindings {
namespace {

void attend(py::handle q, py::handle k_pages, py::handle v_pages, py::handle page_table,
            py::handle cu_seqlens_q, py::handle kv_lengths, py::handle times, py::handle inv_freq,
            bool interleaved, bool causal, int64_t window_left, int64_t window_right, double scale,
            py::handle k_scales, py::handle v_scales, py::handle out, py::handle lse) {
  constexpr const char* op = "paged_attention";
  const Tensor q_(q, op, "q"), k_pages_(k_pages, op, "k_pages"), v_pages_(v_pages, op, "v_pages"),
      page_table_(page_table, op, "page_table"), cu_seqlens_q_(cu_seqlens_q, op, "cu_seqlens_q"),
      kv_lengths_(kv_lengths, op, "kv_lengths"), out_(out, op, "out", Access::write),
      lse_(lse, op, "lse", Access::write);
  const OptionalTensor times_(times, op, "rotation times"),
      inv_freq_(inv_freq, op, "rotation inv_freq"), k_scales_(k_scales, op, "k_scales"),
      v_scales_(v_scales, op, "v_scales");
  const py::gil_scoped_release release;
  paged_attention(q_, k_pages_, v_pages_, page_table_, cu_seqlens_q_, kv_lengths_,
                  {times_, inv_freq_, interleaved, causal, window_left, window_right, scale,
                   k_scales_, v_scales_},
                  out_, lse_, q_.stream());
}

const Binding binding([](py::module_& m) { define<&attend>(m, "paged_attention"); });

}  // namespace
}  // namespace afnext::bindings
