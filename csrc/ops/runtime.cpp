#include "afnext/runtime.h"

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace afnext {

const char* cpu_isa() { return cpu::isa_name(cpu::active_isa()); }

const char* detected_cpu_isa() { return cpu::isa_name(cpu::detected_isa()); }

bool can_run_cpu_isa(const char* name) { return cpu::can_run(name); }

std::vector<std::string> compiled_cpu_isas(const std::string& op) {
  std::vector<std::string> names;
  for (int i = 0; i < cpu::kIsaCount; ++i) {
    const auto isa = static_cast<cpu::Isa>(i);
    if (cpu::has_kernels(op.c_str(), isa)) names.push_back(cpu::isa_name(isa));
  }
  return names;
}

void set_cpu_isa(const char* name) { cpu::set_isa(name); }

int num_threads() { return cpu::num_threads(); }

void set_num_threads(int threads) { cpu::set_num_threads(threads); }

}  // namespace afnext
