#pragma once

#include "afnext/tensor.h"
#include "cpu/isa.h"
#include "ops/head_places.h"

namespace afnext::cpu {

struct AllToAllArgs {
  DType dtype;
  int64_t tokens, dim, token_stride, head_stride;  // elements
  void* x;                                         // [tokens, heads, dim]
  const HeadPlaces* table;
  bool unpack;  // from the ranks' rows to x
};

extern KernelTable<AllToAllArgs> all_to_all_kernels;

}  // namespace afnext::cpu
