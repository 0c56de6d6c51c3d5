// Python functions without pybind11's dispatcher: for ops of many arguments it costs as much as all
// else that a call does.
#pragma once

#include <pybind11/pybind11.h>

#include <string_view>
#include <tuple>
#include <type_traits>
#include <vector>

#include "afnext/error.h"

namespace afnext::bindings {

namespace py = pybind11;

namespace detail {

inline void read(PyObject* object, py::handle* out) { *out = object; }
inline void read(PyObject* object, bool* out) {
  const int truth = PyObject_IsTrue(object);
  if (truth < 0) throw py::error_already_set();
  *out = truth != 0;
}
inline void read(PyObject* object, int64_t* out) {
  *out = PyLong_AsLongLong(object);
  if (*out == -1 && PyErr_Occurred()) throw py::error_already_set();
}
inline void read(PyObject* object, double* out) {
  *out = PyFloat_AsDouble(object);
  if (*out == -1.0 && PyErr_Occurred()) throw py::error_already_set();
}
inline void read(PyObject* object, std::string_view* out) {
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(object, &size);
  if (text == nullptr) throw py::error_already_set();
  *out = {text, static_cast<size_t>(size)};
}
inline void read(PyObject* object, std::vector<int64_t>* out) {
  const auto items =
      py::reinterpret_steal<py::object>(PySequence_Fast(object, "expected a sequence of integers"));
  if (!items) throw py::error_already_set();
  out->resize(static_cast<size_t>(PySequence_Fast_GET_SIZE(items.ptr())));
  for (size_t i = 0; i < out->size(); ++i) {
    read(PySequence_Fast_GET_ITEM(items.ptr(), static_cast<Py_ssize_t>(i)), &(*out)[i]);
  }
}

template <auto function>
struct Vectorcall;
template <typename... Args, void (*function)(Args...)>
struct Vectorcall<function> {
  static PyObject* call(PyObject*, PyObject* const* objects, Py_ssize_t count) {
    return unpack(objects, count, std::index_sequence_for<Args...>());
  }

 private:
  template <size_t... I>
  static PyObject* unpack(PyObject* const* objects, Py_ssize_t count, std::index_sequence<I...>) {
    if (count != sizeof...(Args)) {
      PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd",
                   static_cast<Py_ssize_t>(sizeof...(Args)), count);
      return nullptr;
    }
    try {
      std::tuple<std::decay_t<Args>...> values;
      (read(objects[I], &std::get<I>(values)), ...);
      function(std::get<I>(values)...);
    } catch (py::error_already_set& error) {
      error.restore();
      return nullptr;
    } catch (const Error& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
      return nullptr;
    } catch (const std::exception& error) {
      PyErr_SetString(PyExc_RuntimeError, error.what());
      return nullptr;
    }
    Py_RETURN_NONE;
  }
};

}  // namespace detail

// Adds `function`, of py::handle, bool, int64_t, double, std::string_view and std::vector<int64_t>
// arguments, all positional.
template <auto function>
void define(py::module_& m, const char* name) {
  static PyMethodDef method{name,
                            reinterpret_cast<PyCFunction>(
                                reinterpret_cast<void (*)()>(&detail::Vectorcall<function>::call)),
                            METH_FASTCALL, nullptr};
  PyObject* made = PyCFunction_NewEx(&method, nullptr, m.attr("__name__").ptr());
  if (made == nullptr) throw py::error_already_set();
  m.attr(name) = py::reinterpret_steal<py::object>(made);
}

}  // namespace afnext::bindings
