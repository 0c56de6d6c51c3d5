#include "afnext/paged_plan.h"

#include "bindings/bindings.h"

namespace afnext::bindings {
namespace {

constexpr const char* kAppend = "paged_append";
constexpr const char* kAttention = "paged_attention";

// The plan and, of its pages, where their device's work goes.
class Plan {
 public:
  Plan(py::handle k_pages, int64_t heads, int64_t requests, int64_t pages, int64_t queries,
       int64_t tokens, int64_t splits, bool causal, int64_t window_left, int64_t window_right)
      : Plan(Tensor(k_pages, kAttention, "k_pages"), {requests, pages, queries, tokens, splits},
             {heads, causal, window_left, window_right}) {}

  void update(py::handle like, py::handle page_table, py::handle cu_seqlens,
              py::handle kv_lengths) {
    const Tensor like_(like, kAttention, "k_pages"), table_(page_table, kAttention, "page_table"),
        cu_seqlens_(cu_seqlens, kAttention, "cu_seqlens_q"),
        kv_lengths_(kv_lengths, kAttention, "kv_lengths");
    const py::gil_scoped_release release;
    plan_.update(table_, cu_seqlens_, kv_lengths_, like_.stream());
  }

  void append(py::handle k, py::handle v, py::handle k_pages, py::handle v_pages, py::handle times,
              py::handle inv_freq, bool interleaved, py::handle k_scales, py::handle v_scales) {
    const Tensor k_(k, kAppend, "k"), v_(v, kAppend, "v"),
        k_pages_(k_pages, kAppend, "k_pages", Access::write),
        v_pages_(v_pages, kAppend, "v_pages", Access::write);
    const OptionalTensor times_(times, kAppend, "rotation times"),
        inv_freq_(inv_freq, kAppend, "rotation inv_freq"),
        k_scales_(k_scales, kAppend, "k_scales", Access::write),
        v_scales_(v_scales, kAppend, "v_scales", Access::write);
    const py::gil_scoped_release release;
    plan_.append(k_, v_, k_pages_, v_pages_, times_, inv_freq_, interleaved, k_scales_, v_scales_,
                 k_.stream());
  }

  void attend(py::handle q, py::handle k_pages, py::handle v_pages, py::handle times,
              py::handle inv_freq, bool interleaved, double scale, py::handle k_scales,
              py::handle v_scales, py::handle out, py::handle lse) {
    const Tensor q_(q, kAttention, "q"), k_pages_(k_pages, kAttention, "k_pages"),
        v_pages_(v_pages, kAttention, "v_pages"), out_(out, kAttention, "out", Access::write),
        lse_(lse, kAttention, "lse", Access::write);
    const OptionalTensor times_(times, kAttention, "rotation times"),
        inv_freq_(inv_freq, kAttention, "rotation inv_freq"),
        k_scales_(k_scales, kAttention, "k_scales"), v_scales_(v_scales, kAttention, "v_scales");
    const py::gil_scoped_release release;
    plan_.attend(q_, k_pages_, v_pages_,
                 {times_, inv_freq_, interleaved, false, -1, -1, scale, k_scales_, v_scales_}, out_,
                 lse_, q_.stream());
  }

  void check(py::handle like) {
    const Tensor like_(like, kAttention, "k_pages");
    const py::gil_scoped_release release;
    plan_.check(like_.stream());
  }

  py::tuple words() const {
    const PagedAttentionPlan::Words words = plan_.words();
    return py::make_tuple(reinterpret_cast<uintptr_t>(words.device), words.count);
  }

 private:
  Plan(const Tensor& k_pages, const PagedLimits& limits, const PagedPlanOptions& options)
      : plan_(k_pages, limits, options, k_pages.stream()) {}

  PagedAttentionPlan plan_;
};

const Binding binding([](py::module_& m) {
  py::class_<Plan>(m, "PagedAttentionPlan", py::module_local())
      .def(py::init<py::handle, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool, int64_t,
                    int64_t>())
      .def("update", &Plan::update)
      .def("append", &Plan::append)
      .def("attend", &Plan::attend)
      .def("check", &Plan::check)
      .def("words", &Plan::words);
});

}  // namespace
}  // namespace afnext::bindings
