#pragma once

#include "afnext/pack.h"
#include "cpu/isa.h"

namespace afnext::cpu {

// Both directions of the dense formats.
struct PackArgs {
  PackedView view;
  DType dtype;  // of the plain weight
  void* plain;  // [n, k]; read when packing, written when unpacking
  int64_t stride;
  bool unpack;
};

extern KernelTable<PackArgs> pack_kernels;

// Steps of a panel of a dense format, and bytes of the whole.
inline int64_t dense_steps(const PackedView& v) {
  return v.format == WeightFormat::bf16 ? (v.k + 31) / 32 * 16 : v.k;
}
inline int64_t dense_bytes(const PackedView& v) { return v.panels() * dense_steps(v) * kStepBytes; }

}  // namespace afnext::cpu
