// A tensor that somebody else owns: what every op takes and gives.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace afnext {

enum class DType : uint8_t {
  f32,
  bf16,
  f16,
  f64,
  f8e4m3,  // four bits of exponent, three of fraction, no infinities: torch.float8_e4m3fn
  i8,
  u8,
  i16,
  i32,
  i64,
  boolean,
  other
};

enum class DeviceType : uint8_t { cpu, cuda, other };

constexpr int kMaxDims = 6;

// Strides count elements, as in DLPack and torch.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::other;
  DeviceType device = DeviceType::cpu;
  int32_t device_index = 0;
  int ndim = 0;
  int64_t shape[kMaxDims] = {};
  int64_t stride[kMaxDims] = {};

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }

  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < ndim; ++i) n *= shape[i];
    return n;
  }

  // Product of all dimensions but the last.
  int64_t rows() const {
    int64_t n = 1;
    for (int i = 0; i + 1 < ndim; ++i) n *= shape[i];
    return n;
  }

  int64_t last() const { return ndim > 0 ? shape[ndim - 1] : 1; }

  bool is_contiguous() const {
    int64_t expected = 1;
    for (int i = ndim - 1; i >= 0; --i) {
      if (shape[i] != 1 && stride[i] != expected) return numel() == 0;
      expected *= shape[i];
    }
    return true;
  }

  // Whether all rows lie at one distance, so that the tensor reads as [rows(), last()].
  bool has_uniform_rows() const {
    bool first = true;  // a stride may be any number, negative ones too
    int64_t expected = 0;
    for (int i = ndim - 2; i >= 0; --i) {
      if (shape[i] == 1) continue;
      if (!first && stride[i] != expected) return numel() == 0;
      expected = stride[i] * shape[i];
      first = false;
    }
    return true;
  }

  // Elements from one row to the next; meaningful when has_uniform_rows().
  int64_t row_stride() const {
    for (int i = ndim - 2; i >= 0; --i) {
      if (shape[i] != 1) return stride[i];
    }
    return last();
  }
};

// A CUDA stream (cudaStream_t) that a call's work goes to; null is the device's default stream.
// Calls on CPU tensors ignore it.
struct Stream {
  void* handle = nullptr;
};

inline bool is_floating(DType d) { return d == DType::f32 || d == DType::bf16; }
const char* dtype_name(DType dtype);
const char* device_name(DeviceType device);
int dtype_size(DType dtype);

}  // namespace afnext
