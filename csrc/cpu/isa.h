// Instruction sets: what this machine has, what AFNEXT_CPU_ISA allows, which kernel that picks.
#pragma once

#include <cstdint>

namespace afnext::cpu {

// In rising order: each level includes those before it.
enum class Isa : uint8_t { baseline, avx2, avx_vnni, avx512, avx512_bf16, amx };
constexpr int kIsaCount = 6;

const char* isa_name(Isa isa);
// The best level of this machine, capped by AFNEXT_CPU_ISA (read once). Throws Error on a bad name.
Isa active_isa();
// The best level of this machine.
Isa detected_isa();
// Whether this machine runs code of `isa`. The levels rise, but for one thing: many cores with
// AVX-512 lack the short forms of its VNNI instructions, which avx_vnni consists of.
bool can_run(Isa isa);
bool can_run(const char* name);
// For tests: sets the cap of this process; a level that the machine lacks is refused.
void set_isa(const char* name);
// Whether this build holds a kernel of this level whose name begins with `prefix`.
bool has_kernels(const char* prefix, Isa isa);

// One kernel compiled for several levels. Constant-initialised, so that the static registration of
// the per-level objects can run in any order.
template <typename Args>
struct KernelTable {
  using Function = void (*)(const Args&);
  Function by_isa[kIsaCount] = {};

  void operator()(const Args& args) const { best()(args); }
  Function best() const {
    int level = static_cast<int>(active_isa());
    while (level > 0 && (by_isa[level] == nullptr || !can_run(static_cast<Isa>(level)))) --level;
    return by_isa[level];
  }
};

// Enters one level's kernel into its table before main().
struct KernelRegistration {
  template <typename Args>
  __attribute__((always_inline)) KernelRegistration(KernelTable<Args>& table, Isa isa,
                                                    typename KernelTable<Args>::Function function) {
    table.by_isa[static_cast<int>(isa)] = function;
  }
};

// Every kernel of this build, by file and level; CMake writes the list (cmake/kernels.cpp.in).
struct Kernel {
  const char* name;
  Isa isa;
  const KernelRegistration* registration;
};
struct KernelList {
  const Kernel* first;
  int count;
};
KernelList compiled_kernels();

}  // namespace afnext::cpu

// In a file of csrc/cpu, which CMake compiles once a level with AFNEXT_ISA set to its name:
// AFNEXT_REGISTER(rms_norm, RmsNormArgs) enters `void AFNEXT_ISA::rms_norm(const RmsNormArgs&)`
// into `rms_norm_kernels`. One a file, of its name: the list of kernels relies on it.
#define AFNEXT_REGISTER(name, Args)                             \
  extern ::afnext::cpu::KernelRegistration name##_registration; \
  ::afnext::cpu::KernelRegistration name##_registration(        \
      ::afnext::cpu::name##_kernels, ::afnext::cpu::Isa::AFNEXT_ISA, &AFNEXT_ISA::name);
