// A Python tensor seen as a TensorView: through torch's C exchange API where it has one, through
// data_ptr and strides for other torch tensors, through DLPack for everything else.
#pragma once

#include <pybind11/pybind11.h>

#include "afnext/tensor.h"

namespace afnext::bindings {

namespace py = pybind11;

// What a call does with a tensor: memory that its owner has marked read-only may be read alone.
enum class Access : uint8_t { read, write };

// Valid during the call that it was made for: the caller holds the Python object.
class Tensor {
 public:
  // Throws Error naming `op` and `name` when `object` is no tensor, or must not be written.
  Tensor(py::handle object, const char* op, const char* name, Access access = Access::read);
  ~Tensor();
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  operator const TensorView&() const { return view_; }
  const TensorView& view() const { return view_; }
  const TensorView* operator->() const { return &view_; }
  // Where its owner's work on its device goes at present.
  Stream stream() const { return stream_; }

 private:
  TensorView view_;
  Stream stream_;
  py::object capsule_;  // keeps a DLPack export alive
};

// The same for an argument that may be None.
class OptionalTensor {
 public:
  OptionalTensor(py::handle object, const char* op, const char* name, Access access = Access::read)
      : object_(object) {
    if (object.is_none()) return;
    view_ = &(new (&storage_) Tensor(object, op, name, access))->view();
    held_ = true;
  }
  // The same object as `other` is not read twice: reading a tensor takes longer than checking it.
  OptionalTensor(py::handle object, const char* op, const char* name, const OptionalTensor& other)
      : OptionalTensor(object.is(other.object_) ? py::none() : object, op, name) {
    if (object.is(other.object_)) view_ = other.view_;
  }
  ~OptionalTensor() {
    if (held_) tensor()->~Tensor();
  }
  OptionalTensor(const OptionalTensor&) = delete;
  OptionalTensor& operator=(const OptionalTensor&) = delete;

  operator const TensorView*() const { return view_; }

 private:
  const Tensor* tensor() const { return reinterpret_cast<const Tensor*>(&storage_); }
  alignas(Tensor) char storage_[sizeof(Tensor)];
  bool held_ = false;
  py::handle object_;
  const TensorView* view_ = nullptr;
};

}  // namespace afnext::bindings
