#include "cpu/linear.h"

#include "cpu/linear_blocks.h"
#include "cpu/linear_rows.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

// Up to here reading the weight in place is faster than packing it (measured from 384 to 18,944).
constexpr int64_t kFewRows = 16, kFewColumns = kLanes / 2;

template <typename T>
void linear_of(const LinearArgs& a) {
  a.m <= kFewRows || a.n <= kFewColumns ? linear_rows<T>(a) : linear_blocks<T>(a);
}

}  // namespace

void linear(const LinearArgs& args) {
  args.dtype == DType::f32 ? linear_of<float>(args) : linear_of<bf16>(args);
}

AFNEXT_REGISTER(linear, LinearArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
