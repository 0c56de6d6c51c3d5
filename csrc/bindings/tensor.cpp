#include "bindings/tensor.h"

#include <cstring>
#include <string>

#include "afnext/error.h"
#include "bindings/dlpack_abi.h"

namespace afnext::bindings {
namespace {

DType dtype_of(dlpack::DataType t) {
  if (t.lanes != 1) return DType::other;
  switch (t.code) {
    case dlpack::kFloat:
      return t.bits == 32   ? DType::f32
             : t.bits == 16 ? DType::f16
             : t.bits == 64 ? DType::f64
                            : DType::other;
    case dlpack::kBfloat:
      return t.bits == 16 ? DType::bf16 : DType::other;
    case dlpack::kInt:
      return t.bits == 32   ? DType::i32
             : t.bits == 64 ? DType::i64
             : t.bits == 8  ? DType::i8
             : t.bits == 16 ? DType::i16
                            : DType::other;
    case dlpack::kUInt:
      return t.bits == 8 ? DType::u8 : DType::other;
    case dlpack::kFloat8E4m3:
      return t.bits == 8 ? DType::f8e4m3 : DType::other;
    case dlpack::kBool:
      return DType::boolean;
    default:
      return DType::other;
  }
}

[[noreturn]] void refuse(const char* op, const char* name, const std::string& why) {
  throw Error(std::string(op) + ": " + name + " " + why);
}

// No kernel may follow a null pointer: torch gives one for storage that was freed by resizing it.
void refuse_null(const TensorView& view, const char* op, const char* name) {
  const bool ours = view.device != DeviceType::other;  // others are refused for their device
  if (view.data == nullptr && ours && view.numel() > 0) refuse(op, name, "has no memory");
}

TensorView view_of(const dlpack::Tensor& t, const char* op, const char* name) {
  if (t.ndim > kMaxDims) {
    refuse(op, name, "has " + std::to_string(t.ndim) + " dimensions, at most 6 are supported");
  }
  TensorView view;
  view.data = t.data ? static_cast<char*>(t.data) + t.byte_offset : nullptr;
  view.dtype = dtype_of(t.dtype);
  view.device = t.device.type == dlpack::kCpu || t.device.type == dlpack::kCudaHost
                    ? DeviceType::cpu
                : t.device.type == dlpack::kCuda ? DeviceType::cuda
                                                 : DeviceType::other;
  view.device_index = t.device.id;
  view.ndim = t.ndim;
  int64_t packed = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    view.shape[i] = t.shape[i];
    view.stride[i] = t.strides ? t.strides[i] : packed;
    packed *= t.shape[i];
  }
  refuse_null(view, op, name);
  return view;
}

// The exchange table of a type, or null. Types are few: a handful of slots makes the lookup free.
const dlpack::ExchangeApi* exchange_api(PyTypeObject* type) {
  struct Slot {
    PyTypeObject* type;
    const dlpack::ExchangeApi* api;
  };
  static Slot slots[8];
  static int used = 0;
  for (int i = 0; i < used; ++i) {
    if (slots[i].type == type) return slots[i].api;
  }
  const dlpack::ExchangeApi* api = nullptr;
  py::object capsule = py::getattr(py::handle(reinterpret_cast<PyObject*>(type)),
                                   "__dlpack_c_exchange_api__", py::none());
  if (PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
    api = static_cast<const dlpack::ExchangeApi*>(
        PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (api->version.major != 1 || api->to_tensor == nullptr) api = nullptr;
  }
  if (used < 8) {
    Py_INCREF(type);  // the slot compares addresses: the type must not be freed and reused
    slots[used++] = {type, api};
  }
  return api;
}

// torch tensors without the exchange API (before 2.10): DLPack refuses those that require grad.
bool read_torch(py::handle object, const char* op, const char* name, TensorView* view) {
  if (!py::hasattr(object, "data_ptr") || !py::hasattr(object, "stride")) return false;
  const auto shape = object.attr("shape").cast<py::tuple>();
  const auto stride = object.attr("stride")().cast<py::tuple>();
  if (shape.size() > kMaxDims) refuse(op, name, "has more than 6 dimensions");
  const auto dtype = py::str(object.attr("dtype")).cast<std::string>();
  const auto device = object.attr("device").attr("type").cast<std::string>();
  view->data = reinterpret_cast<void*>(object.attr("data_ptr")().cast<uintptr_t>());
  view->ndim = static_cast<int>(shape.size());
  for (int i = 0; i < view->ndim; ++i) {
    view->shape[i] = shape[i].cast<int64_t>();
    view->stride[i] = stride[i].cast<int64_t>();
  }
  view->device = device == "cpu"    ? DeviceType::cpu
                 : device == "cuda" ? DeviceType::cuda
                                    : DeviceType::other;
  if (view->device == DeviceType::cuda) {
    view->device_index = object.attr("device").attr("index").cast<int32_t>();
  }
  for (int d = 0; d < static_cast<int>(DType::other); ++d) {
    if (dtype == std::string("torch.") + dtype_name(static_cast<DType>(d))) {
      view->dtype = static_cast<DType>(d);
    }
  }
  refuse_null(*view, op, name);
  return true;
}

// The stream of a device where the exchange API does not tell it: torch before 2.10, CuPy, JAX.
Stream torch_stream(py::handle object, [[maybe_unused]] int device) {
  if (!py::hasattr(object, "data_ptr")) return {};  // the device's default stream
#if defined(AFNEXT_EMULATED_CUDA)
  return {};
#else
  const auto stream = py::module_::import("torch._C").attr("_cuda_getCurrentRawStream")(device);
  return {reinterpret_cast<void*>(stream.cast<uintptr_t>())};
#endif
}

py::object export_dlpack(py::handle object) {
  try {
    return object.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 0));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    return object.attr("__dlpack__")();  // a producer from before version 1
  }
}

}  // namespace

Tensor::Tensor(py::handle object, const char* op, const char* name, Access access) {
  if (const dlpack::ExchangeApi* api = exchange_api(Py_TYPE(object.ptr()))) {
    dlpack::Tensor tensor;
    if (api->to_tensor(object.ptr(), &tensor) != 0) {
      const py::error_already_set error;
      refuse(op, name, std::string("cannot be read: ") + error.what());
    }
    view_ = view_of(tensor, op, name);
    if (view_.device == DeviceType::cuda && api->current_stream != nullptr) {
      api->current_stream(dlpack::kCuda, view_.device_index, &stream_.handle);
    }
    return;
  }
  if (read_torch(object, op, name, &view_)) {
    if (view_.device == DeviceType::cuda) stream_ = torch_stream(object, view_.device_index);
    return;
  }
  if (!py::hasattr(object, "__dlpack__")) {
    refuse(op, name,
           "must be a tensor, got " +
               py::str(py::type::handle_of(object).attr("__name__")).cast<std::string>());
  }
  try {
    capsule_ = export_dlpack(object);
  } catch (py::error_already_set& error) {
    refuse(op, name, std::string("cannot be read: ") + error.what());
  }
  if (PyCapsule_IsValid(capsule_.ptr(), "dltensor_versioned")) {
    const auto* managed = static_cast<dlpack::ManagedVersioned*>(
        PyCapsule_GetPointer(capsule_.ptr(), "dltensor_versioned"));
    if (access == Access::write && (managed->flags & dlpack::kReadOnly) != 0) {
      refuse(op, name, "must be writeable");
    }
    view_ = view_of(managed->tensor, op, name);
  } else if (PyCapsule_IsValid(capsule_.ptr(), "dltensor")) {
    const auto* managed =
        static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"));
    view_ = view_of(managed->tensor, op, name);
  } else {
    refuse(op, name, "gives no DLPack capsule");
  }
}

// The capsule was never renamed, so its own destructor frees the export.
Tensor::~Tensor() = default;

}  // namespace afnext::bindings
