// How an op's bindings reach the module: a static Binding in csrc/bindings/<op>.cpp.
#pragma once

#include <pybind11/pybind11.h>

#include "bindings/function.h"
#include "bindings/tensor.h"

namespace afnext::bindings {

struct Binding {
  using Function = void (*)(py::module_&);
  explicit Binding(Function function) : bind(function), next(head) { head = this; }

  Function bind;
  Binding* next;
  static inline Binding* head = nullptr;
};

}  // namespace afnext::bindings
