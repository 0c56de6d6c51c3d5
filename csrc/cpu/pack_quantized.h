#pragma once

#include "cpu/quantized_panel.h"

namespace afnext::cpu {

// Canonical tensors as in afnext/quantize.h; zeros is null without zero points.
struct PackQuantizedArgs {
  PackedView view;
  const uint8_t* values;
  const void* scales;
  const uint8_t* zeros;
};

void pack_quantized(const PackQuantizedArgs& args);
void unpack_quantized(const PackedView& view, float* out);

}  // namespace afnext::cpu
