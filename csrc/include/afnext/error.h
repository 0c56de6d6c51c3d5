// Errors and argument checks. Python sees an Error as ValueError.
#pragma once

#include <stdexcept>
#include <string>

#include "afnext/tensor.h"

namespace afnext {

class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// Checks the arguments of one op; every message begins with the op's name and names the argument.
// Passing checks cost a comparison: messages are built only on failure.
class Check {
 public:
  // All tensors must be on the CPU.
  explicit Check(const char* op) : op_(op) {}
  // All tensors but metadata must be where `first` is: on the CPU, or on a CUDA device where this
  // build has kernels for one.
  Check(const char* op, const TensorView& first);

  // Throws unless `ok`. `what` is the whole sentence after "op: ".
  void require(bool ok, const char* what) const {
    if (!ok) fail(what);
  }
  // float32 or bfloat16 (on CUDA float16 too), `ndim` dimensions (any when negative), unit stride
  // in the last one.
  void floating(const TensorView& t, const char* name, int ndim = -1) const;
  // Like `floating`, and of `like`'s dtype.
  void floating_like(const TensorView& t, const char* name, const TensorView& like,
                     int ndim = -1) const;
  // Exactly this dtype and shape, contiguous.
  void exact(const TensorView& t, const char* name, DType dtype,
             std::initializer_list<int64_t> shape) const;
  // Same dtype, shape and device as `like`; unit stride in the last dimension.
  void same(const TensorView& t, const char* name, const TensorView& like) const;
  // The same on the CPU, wherever other tensors are: what kernels are told, checked by reading it.
  void metadata(const TensorView& t, const char* name, DType dtype,
                std::initializer_list<int64_t> shape) const;
  // Metadata int32 [N + 1] (or int64): starts at 0, never falls, ends at `total`.
  void offsets(const TensorView& t, const char* name, DType dtype, int64_t total) const;
  // All dimensions packed in row-major order.
  void contiguous(const TensorView& t, const char* name) const;
  void on_device(const TensorView& t, const char* name) const;
  void on_cpu(const TensorView& t, const char* name) const;

  [[noreturn]] void fail(const std::string& what) const;

 private:
  const char* op_;
  DeviceType device_ = DeviceType::cpu;
  int32_t device_index_ = 0;
};

// "float32 [3, 4] on cpu"
std::string describe(const TensorView& t);
std::string describe(DType dtype, std::initializer_list<int64_t> shape);

}  // namespace afnext
