#include <string>

#include "afnext/error.h"
#include "cuda/backend.h"

namespace afnext {

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "float32";
    case DType::bf16:
      return "bfloat16";
    case DType::f16:
      return "float16";
    case DType::f64:
      return "float64";
    case DType::f8e4m3:
      return "float8_e4m3fn";
    case DType::i8:
      return "int8";
    case DType::u8:
      return "uint8";
    case DType::i16:
      return "int16";
    case DType::i32:
      return "int32";
    case DType::i64:
      return "int64";
    case DType::boolean:
      return "bool";
    case DType::other:
      break;
  }
  return "an unsupported dtype";
}

const char* device_name(DeviceType device) {
  switch (device) {
    case DeviceType::cpu:
      return "cpu";
    case DeviceType::cuda:
      return "cuda";
    case DeviceType::other:
      break;
  }
  return "an unsupported device";
}

int dtype_size(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
    case DType::i16:
      return 2;
    default:
      return 1;
  }
}

namespace {

template <typename Shape>
std::string shape_text(const Shape* shape, int ndim) {
  std::string text = "[";
  for (int i = 0; i < ndim; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace

std::string describe(const TensorView& t) {
  const std::string index = t.device == DeviceType::cpu ? "" : ":" + std::to_string(t.device_index);
  return std::string(dtype_name(t.dtype)) + " " + shape_text(t.shape, t.ndim) + " on " +
         device_name(t.device) + index;
}

std::string describe(DType dtype, std::initializer_list<int64_t> shape) {
  return std::string(dtype_name(dtype)) + " " +
         shape_text(shape.begin(), static_cast<int>(shape.size()));
}

Check::Check(const char* op, const TensorView& first) : op_(op) {
  if (!kCuda || first.device != DeviceType::cuda) return;
  device_ = first.device;
  device_index_ = first.device_index;
}

void Check::fail(const std::string& what) const { throw Error(std::string(op_) + ": " + what); }

void Check::on_cpu(const TensorView& t, const char* name) const {
  if (t.device != DeviceType::cpu) fail(std::string(name) + " must be on cpu, got " + describe(t));
}

void Check::on_device(const TensorView& t, const char* name) const {
  if (device_ == DeviceType::cpu) return on_cpu(t, name);
  if (t.device != device_ || t.device_index != device_index_) {
    fail(std::string(name) + " must be on " + device_name(device_) + ":" +
         std::to_string(device_index_) + ", got " + describe(t));
  }
}

void Check::floating(const TensorView& t, const char* name, int ndim) const {
  on_device(t, name);
  const bool half = device_ == DeviceType::cuda && t.dtype == DType::f16;
  if (!is_floating(t.dtype) && !half) {
    fail(std::string(name) + " must be float32" +
         (device_ == DeviceType::cuda ? ", bfloat16 or float16" : " or bfloat16") + ", got " +
         describe(t));
  }
  if (ndim >= 0 ? t.ndim != ndim : t.ndim < 1) {
    fail(std::string(name) + " must have " + (ndim >= 0 ? std::to_string(ndim) : "at least 1") +
         " dimensions, got " + describe(t));
  }
  if (t.last() > 1 && t.stride[t.ndim - 1] != 1) {
    fail(std::string(name) + " must have unit stride in its last dimension, got stride " +
         std::to_string(t.stride[t.ndim - 1]) + " for " + describe(t));
  }
}

void Check::floating_like(const TensorView& t, const char* name, const TensorView& like,
                          int ndim) const {
  floating(t, name, ndim);
  if (t.dtype != like.dtype || t.device != like.device) {
    fail(std::string(name) + " must match " + describe(like) + " in dtype and device, got " +
         describe(t));
  }
}

void Check::contiguous(const TensorView& t, const char* name) const {
  if (!t.is_contiguous()) fail(std::string(name) + " must be contiguous, got " + describe(t));
}

namespace {

bool has(const TensorView& t, DType dtype, std::initializer_list<int64_t> shape) {
  bool ok = t.dtype == dtype && t.ndim == static_cast<int>(shape.size());
  for (int i = 0; ok && i < t.ndim; ++i) ok = t.shape[i] == shape.begin()[i];
  return ok;
}

}  // namespace

void Check::exact(const TensorView& t, const char* name, DType dtype,
                  std::initializer_list<int64_t> shape) const {
  on_device(t, name);
  if (!has(t, dtype, shape)) {
    fail(std::string(name) + " must be " + describe(dtype, shape) + ", got " + describe(t));
  }
  contiguous(t, name);
}

void Check::metadata(const TensorView& t, const char* name, DType dtype,
                     std::initializer_list<int64_t> shape) const {
  on_cpu(t, name);
  if (!has(t, dtype, shape)) {
    fail(std::string(name) + " must be " + describe(dtype, shape) + ", got " + describe(t));
  }
  contiguous(t, name);
}

void Check::same(const TensorView& t, const char* name, const TensorView& like) const {
  on_device(t, name);
  bool ok = t.dtype == like.dtype && t.ndim == like.ndim && t.device == like.device;
  for (int i = 0; ok && i < t.ndim; ++i) ok = t.shape[i] == like.shape[i];
  if (!ok) fail(std::string(name) + " must be " + describe(like) + ", got " + describe(t));
  if (t.last() > 1 && t.stride[t.ndim - 1] != 1) {
    fail(std::string(name) + " must have unit stride in its last dimension, got " + describe(t));
  }
}

namespace {

template <typename T>
bool rises_from_zero(const TensorView& t, int64_t total) {
  const T* offsets = t.as<T>();
  const int64_t n = t.shape[0];
  if (offsets[0] != 0 || offsets[n - 1] != total) return false;
  for (int64_t i = 1; i < n; ++i) {
    if (offsets[i] < offsets[i - 1]) return false;
  }
  return true;
}

}  // namespace

void Check::offsets(const TensorView& t, const char* name, DType dtype, int64_t total) const {
  on_cpu(t, name);
  if (t.dtype != dtype || t.ndim != 1 || t.shape[0] < 1) {
    fail(std::string(name) + " must be " + dtype_name(dtype) + " [N + 1], got " + describe(t));
  }
  contiguous(t, name);
  const bool ok =
      dtype == DType::i64 ? rises_from_zero<int64_t>(t, total) : rises_from_zero<int32_t>(t, total);
  if (!ok) {
    fail(std::string(name) + " must rise from 0 to " + std::to_string(total) + " without falling");
  }
}

}  // namespace afnext
