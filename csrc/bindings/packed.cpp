#include "bindings/packed.h"

#include "afnext/error.h"

namespace afnext::bindings {

PackedView packed_tensor(const char* op, const TensorView& first, const TensorView& data,
                         std::string_view format, int64_t n, int64_t k, bool gate_up) {
  PackedView view = afnext::packed_view(op, format, n, k, gate_up, packed_layout(first.device));
  const Check check(op, first);
  check.exact(data, "data", DType::u8, {packed_bytes(view)});
  check.require(reinterpret_cast<uintptr_t>(data.data) % 64 == 0,
                "data must be aligned to 64 bytes");
  view.data = data.data;
  return view;
}

}  // namespace afnext::bindings
