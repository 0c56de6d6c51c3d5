// The part of the DLPack ABI (version 1, https://dmlc.github.io/dlpack) that the bindings read.
#pragma once

#include <cstdint>

namespace afnext::bindings::dlpack {

struct Version {
  uint32_t major, minor;
};

struct Device {
  int32_t type, id;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

enum DeviceCode : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3 };
enum TypeCode : uint8_t {
  kInt = 0,
  kUInt = 1,
  kFloat = 2,
  kBfloat = 4,
  kBool = 6,
  kFloat8E4m3 = 10
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // elements; null means row-major
  uint64_t byte_offset;
};

enum Flag : uint64_t { kReadOnly = 1 };

struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct ManagedVersioned {
  Version version;
  void* context;
  void (*deleter)(ManagedVersioned*);
  uint64_t flags;
  Tensor tensor;
};

// Function table behind a tensor type's `__dlpack_c_exchange_api__` capsule. Only the
// entries that fill a borrowed Tensor and tell a device's stream are called here; the others keep
// their places.
struct ExchangeApi {
  Version version;
  void* previous;
  void* allocate;
  void* to_managed;
  void* from_managed;
  int (*to_tensor)(void* object, Tensor* out);
  int (*current_stream)(int32_t device_type, int32_t device, void** out);
};

}  // namespace afnext::bindings::dlpack
