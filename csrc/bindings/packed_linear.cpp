#include "afnext/packed_linear.h"

#include "afnext/error.h"
#include "bindings/bindings.h"
#include "bindings/packed.h"

namespace afnext::bindings {
namespace {

Activation parse_activation(std::string_view name) {
  if (name.empty()) return Activation::none;
  if (name == "gelu") return Activation::gelu;
  if (name == "silu_mul") return Activation::silu_mul;
  throw Error("linear: activation must be gelu or silu_mul, got '" + std::string(name) + "'");
}

void run(const TensorView& x, const PackedView& weight, const TensorView* bias,
         const TensorView* residual, Activation activation, const TensorView& out, Stream stream) {
  packed_linear(x, weight, bias, residual, activation, out, stream);
}
void run_tiles(const TensorView& x, const PackedView& weight, const TensorView* bias,
               const TensorView* residual, Activation activation, const TensorView& out, Stream) {
  packed_linear_tiles(x, weight, bias, residual, activation, out);
}

template <auto function>
void call(py::handle x, py::handle data, py::handle bias, py::handle residual,
          std::string_view format, int64_t n, int64_t k, bool gate_up, std::string_view activation,
          py::handle out) {
  constexpr const char* op = "linear";
  const Tensor x_(x, op, "x"), data_(data, op, "data"), out_(out, op, "out", Access::write);
  const OptionalTensor bias_(bias, op, "bias"), residual_(residual, op, "residual");
  const PackedView weight = packed_tensor(op, x_, data_, format, n, k, gate_up);
  const Activation activation_ = parse_activation(activation);
  const py::gil_scoped_release release;
  function(x_, weight, bias_, residual_, activation_, out_, x_.stream());
}

const Binding binding([](py::module_& m) {
  define<&call<run>>(m, "packed_linear");
  define<&call<run_tiles>>(m, "packed_linear_tiles");
});

}  // namespace
}  // namespace afnext::bindings
