#pragma once

#include "afnext/tensor.h"
#include "ops/head_places.h"

namespace afnext::cuda {

// On checked arguments; the table says where ranks' rows lie.
void all_to_all_pack(const TensorView& x, const HeadPlaces& table, Stream stream);
void all_to_all_unpack(const HeadPlaces& table, const TensorView& out, Stream stream);

}  // namespace afnext::cuda
