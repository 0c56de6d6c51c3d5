#pragma once

#include "cuda/arch/call.h"
#include "cuda/attention_params.h"

namespace afnext::cuda {

// A rotation by times [tokens] of the first 2 x half channels; without one inv_freq is null.
struct Turn {
  const float *times = nullptr, *inv_freq = nullptr;
  int half = 0;
  bool interleaved = false;
};

// Heads [tokens, heads, dim] as attention's kernels read them: of dtype `as`, turned, and for
// 16-bit elements in whole units of 16 bytes, zeros filling the last. The tensor itself where it is
// so, else a copy that lasts as long as this.
class ReadableHeads {
 public:
  // `as` is t's dtype, or a 16-bit one for a float32 t.
  ReadableHeads(const Call& call, const TensorView& t, DType as, const Turn& turn = {});

  const Heads& heads() const { return heads_; }

 private:
  Scratch memory_;
  Heads heads_;
};

inline Heads heads_of(const TensorView& t) { return {t.data, t.stride[0], t.stride[1]}; }

// Whether kernels may read heads of this tensor in units of 16 bytes: by every stride, for the copy
// engine looks at those of single tokens and heads too.
bool in_units(const TensorView& t);

}  // namespace afnext::cuda
