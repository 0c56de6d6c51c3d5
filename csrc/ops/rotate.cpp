#include "afnext/rotate.h"

#include "afnext/error.h"
#include "cpu/rotate.h"
#include "cuda/backend.h"
#include "cuda/rotate.h"

namespace afnext {

constinit cpu::KernelTable<cpu::RotateArgs> cpu::rotate_kernels;

void rotate(const TensorView& x, const TensorView* times, const TensorView* inv_freq,
            const TensorView* angles, bool interleaved, bool inverse, const TensorView& out,
            Stream stream) {
  const Check check("rotate", x);
  check.floating(x, "x", 3);
  check.same(out, "out", x);
  check.contiguous(out, "out");
  int64_t half = 0;
  if (angles != nullptr) {
    check.require(times == nullptr && inv_freq == nullptr,
                  "give angles, or times and inv_freq, not both");
    half = angles->last();
    check.exact(*angles, "angles", DType::f32, {x.shape[0], half});
  } else {
    check.require(times != nullptr && inv_freq != nullptr, "give times and inv_freq, or angles");
    half = inv_freq->last();
    check.exact(*times, "times", DType::f32, {x.shape[0]});
    check.exact(*inv_freq, "inv_freq", DType::f32, {half});
  }
  if (2 * half > x.last()) {
    check.fail("2 x " + std::to_string(half) + " channels do not fit x " + describe(x));
  }
  if (x.numel() == 0) return;
  if constexpr (kCuda) {
    if (on_cuda(x)) {
      return cuda::rotate(x, times, inv_freq, angles, interleaved, inverse, out, stream);
    }
  }
  cpu::rotate_kernels(
      {x.dtype, x.shape[0], x.shape[1], x.shape[2], half, x.stride[0], x.stride[1], x.data,
       times ? times->as<const float>() : nullptr, inv_freq ? inv_freq->as<const float>() : nullptr,
       angles ? angles->as<const float>() : nullptr, interleaved, inverse, out.data});
}

}  // namespace afnext
