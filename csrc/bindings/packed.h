// A packed weight as Python hands it over: its bytes, and what they mean.
#pragma once

#include <string_view>

#include "afnext/pack.h"
#include "bindings/tensor.h"

namespace afnext::bindings {

// `data` with the format of this name, in the layout of `first`'s device; throws Error of `op`
// where it is not the packing of [n, k] there.
PackedView packed_tensor(const char* op, const TensorView& first, const TensorView& data,
                         std::string_view format, int64_t n, int64_t k, bool gate_up);

}  // namespace afnext::bindings
