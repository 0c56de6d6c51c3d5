// Settings of emulated launches, for tests: this file is compiled in builds of AFNEXT_CUDA=emulated
// alone.
#include <pybind11/pybind11.h>

#include "bindings/bindings.h"
#include "cuda/arch/emulated_call.h"

namespace afnext::bindings {
namespace {

emulation::Order order_of(const std::string& name) {
  if (name == "first_in") return emulation::Order::first_in;
  if (name == "last_in") return emulation::Order::last_in;
  if (name == "random") return emulation::Order::random;
  throw Error("emulation: order must be first_in, last_in or random, got " + name);
}

void set_emulation(const std::string& order, uint64_t seed, int os_threads, bool detect_races) {
  emulation::Options& options = cuda::emulated_launches().options;
  options.order = order_of(order);
  options.seed = seed;
  options.os_threads = os_threads;
  options.detect_races = detect_races && emulation::kInstrumented;
}

void set_device(int sm, int multiprocessors) {
  cuda::Device& device = cuda::emulated_launches().device;
  device.sm = sm;
  device.shared_bytes = (sm == 80 ? 163 : sm == 90 || sm == 100 ? 227 : 99) << 10;
  device.multiprocessors = multiprocessors;
}

// The host has filled these bytes: what kernels wrote there before is no more.
void put(uintptr_t address, size_t bytes) {
  cuda::emulated_launches().stream.forget(reinterpret_cast<const void*>(address), bytes);
}

void set_capturing(bool capturing) { cuda::emulated_launches().capturing = capturing; }

py::dict counters() {
  const cuda::EmulatedLaunches& all = cuda::emulated_launches();
  py::dict out;
  out["launches"] = all.launches;
  out["barriers"] = all.counters.barriers;
  out["shared_accesses"] = all.counters.shared_accesses;
  out["matrix_loads"] = all.counters.matrix_loads;
  out["bank_conflicts"] = all.counters.bank_conflicts;
  out["matrix_products"] = all.counters.matrix_products;
  out["warpgroup_products"] = all.counters.warpgroup_products;
  out["async_copies"] = all.counters.async_copies;
  out["tensor_copies"] = all.counters.tensor_copies;
  return out;
}

const Binding binding([](py::module_& m) {
  m.def("set_emulation", &set_emulation, py::arg("order"), py::arg("seed") = 1,
        py::arg("os_threads") = 1, py::arg("detect_races") = true);
  m.def("set_emulated_device", &set_device, py::arg("sm"), py::arg("multiprocessors") = 4);
  m.def("emulated_put", &put, py::arg("address"), py::arg("bytes"));
  m.def("set_emulated_capture", &set_capturing, py::arg("capturing"));
  m.def("emulation_counters", &counters);
});

}  // namespace
}  // namespace afnext::bindings
