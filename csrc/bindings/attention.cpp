#include "afnext/attention.h"

#include <type_traits>

#include "bindings/bindings.h"

namespace afnext::bindings {
namespace {

template <auto function>
void forward(py::handle q, py::handle k, py::handle v, py::handle cu_seqlens_q,
             py::handle cu_seqlens_k, py::handle key_lengths, py::handle times_q,
             py::handle times_k, py::handle inv_freq, bool interleaved, bool causal,
             int64_t window_left, int64_t window_right, double scale, py::handle out,
             py::handle lse) {
  constexpr const char* op = "attention";
  const Tensor q_(q, op, "q"), k_(k, op, "k"), v_(v, op, "v"), out_(out, op, "out", Access::write),
      lse_(lse, op, "lse", Access::write);
  const OptionalTensor cu_q(cu_seqlens_q, op, "cu_seqlens_q"),
      cu_k(cu_seqlens_k, op, "cu_seqlens_k", cu_q), lengths(key_lengths, op, "key_lengths"),
      times_q_(times_q, op, "rotation.times_q"),
      times_k_(times_k, op, "rotation.times_k", times_q_),
      inv_freq_(inv_freq, op, "rotation.inv_freq");
  const AttentionOptions options{cu_q,        cu_k,         lengths,     times_q_,
                                 times_k_,    inv_freq_,    interleaved, causal,
                                 window_left, window_right, scale};
  const py::gil_scoped_release release;
  if constexpr (std::is_invocable_v<decltype(function), const TensorView&, const TensorView&,
                                    const TensorView&, const AttentionOptions&, const TensorView&,
                                    const TensorView&, Stream>) {
    function(q_, k_, v_, options, out_, lse_, q_.stream());
  } else {
    function(q_, k_, v_, options, out_, lse_);
  }
}

template <auto function>
void backward(py::handle grad_out, py::handle grad_lse, py::handle q, py::handle k, py::handle v,
              py::handle out, py::handle lse, py::handle cu_seqlens_q, py::handle cu_seqlens_k,
              py::handle key_lengths, py::handle times_q, py::handle times_k, py::handle inv_freq,
              bool interleaved, bool causal, int64_t window_left, int64_t window_right,
              double scale, py::handle grad_q, py::handle grad_k, py::handle grad_v) {
  constexpr const char* op = "attention_backward";
  const Tensor grad_out_(grad_out, op, "grad_out"), q_(q, op, "q"), k_(k, op, "k"), v_(v, op, "v"),
      out_(out, op, "out"), lse_(lse, op, "lse"), grad_q_(grad_q, op, "grad_q", Access::write),
      grad_k_(grad_k, op, "grad_k", Access::write), grad_v_(grad_v, op, "grad_v", Access::write);
  const OptionalTensor grad_lse_(grad_lse, op, "grad_lse"), cu_q(cu_seqlens_q, op, "cu_seqlens_q"),
      cu_k(cu_seqlens_k, op, "cu_seqlens_k", cu_q), lengths(key_lengths, op, "key_lengths"),
      times_q_(times_q, op, "rotation.times_q"),
      times_k_(times_k, op, "rotation.times_k", times_q_),
      inv_freq_(inv_freq, op, "rotation.inv_freq");
  const py::gil_scoped_release release;
  function(grad_out_, grad_lse_, q_, k_, v_, out_, lse_,
           {cu_q, cu_k, lengths, times_q_, times_k_, inv_freq_, interleaved, causal, window_left,
            window_right, scale},
           grad_q_, grad_k_, grad_v_, q_.stream());
}

const Binding binding([](py::module_& m) {
  define<&forward<attention>>(m, "attention");
  define<&forward<attention_tiles>>(m, "attention_tiles");
  define<&backward<attention_backward>>(m, "attention_backward");
  define<&backward<attention_backward_tiles>>(m, "attention_backward_tiles");
});

}  // namespace
}  // namespace afnext::bindings
