// Placeholder until the shared one is merged.
#pragma once
#include "cuda/arch/numbers.h"
namespace afnext::cuda {
struct SinCos {
  float sin, cos;
};
AFNEXT_DEVICE SinCos sincos_of(float time, float inv_freq) {
  const double phase = static_cast<double>(time) * static_cast<double>(inv_freq);
  return {static_cast<float>(sin(phase)), static_cast<float>(cos(phase))};
}
}  // namespace afnext::cuda
