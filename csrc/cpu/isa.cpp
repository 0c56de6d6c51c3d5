#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

#include "afnext/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace afnext::cpu {
namespace {

constexpr const char* kNames[kIsaCount] = {"baseline", "avx2",        "avx_vnni",
                                           "avx512",   "avx512_bf16", "amx"};

#if defined(__x86_64__)

struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Leaf cpuid(unsigned leaf, unsigned subleaf = 0) {
  Leaf r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

bool bit(unsigned word, int index) { return (word >> index) & 1u; }

uint64_t enabled_states() {
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux keeps the tile registers off until a process asks for them, before its threads start.
bool request_tiles() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Isa detect() {
  const Leaf one = cpuid(1);
  if (!bit(one.ecx, 27)) return Isa::baseline;  // the system does not save vector registers
  const uint64_t states = enabled_states();
  const Leaf seven = cpuid(7), seven1 = cpuid(7, 1);
  const bool ymm = (states & 0x6) == 0x6, zmm = (states & 0xe6) == 0xe6;
  const bool tiles = (states & 0x60000) == 0x60000;
  const bool fma = bit(one.ecx, 12), f16c = bit(one.ecx, 29);
  const bool avx2 = bit(seven.ebx, 5), bmi2 = bit(seven.ebx, 8);
  if (!(ymm && fma && f16c && avx2 && bmi2)) return Isa::baseline;
  const bool avx512 = bit(seven.ebx, 16) && bit(seven.ebx, 17) && bit(seven.ebx, 30) &&
                      bit(seven.ebx, 31) && bit(seven.ecx, 11);  // F, DQ, BW, VL, VNNI
  if (!(zmm && avx512)) return bit(seven1.eax, 4) ? Isa::avx_vnni : Isa::avx2;
  if (!bit(seven1.eax, 5)) return Isa::avx512;
  const bool amx = bit(seven.edx, 22) && bit(seven.edx, 24) && bit(seven.edx, 25);
  return tiles && amx && request_tiles() ? Isa::amx : Isa::avx512_bf16;
}

bool has_avx_vnni() { return bit(cpuid(7, 1).eax, 4); }

#else

Isa detect() { return Isa::baseline; }

bool has_avx_vnni() { return false; }

#endif

Isa parse(const char* name, const char* argument) {
  for (int i = 0; i < kIsaCount; ++i) {
    if (std::strcmp(name, kNames[i]) == 0) return static_cast<Isa>(i);
  }
  std::string known;
  for (const char* k : kNames) known += (known.empty() ? "" : ", ") + std::string(k);
  throw Error(std::string(argument) + ": '" + name + "' is not one of " + known);
}

Isa initial() {
  const char* cap = std::getenv("AFNEXT_CPU_ISA");
  if (cap == nullptr || *cap == '\0') return detected_isa();
  const Isa wanted = parse(cap, "AFNEXT_CPU_ISA");
  return wanted < detected_isa() ? wanted : detected_isa();
}

std::atomic<int> g_active{-1};

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa detected_isa() {
  static const Isa detected = detect();
  return detected;
}

Isa active_isa() {
  const int isa = g_active.load(std::memory_order_relaxed);
  if (isa >= 0) return static_cast<Isa>(isa);
  const Isa first = initial();
  g_active.store(static_cast<int>(first), std::memory_order_relaxed);
  return first;
}

bool can_run(Isa isa) {
  static const bool avx_vnni = has_avx_vnni();
  return isa <= detected_isa() && (isa != Isa::avx_vnni || avx_vnni);
}

bool can_run(const char* name) { return can_run(parse(name, "isa")); }

void set_isa(const char* name) {
  const Isa isa = parse(name, "set_cpu_isa");
  if (isa > detected_isa()) {
    throw Error("set_cpu_isa: this machine has " + std::string(isa_name(detected_isa())) +
                " at best, not " + name);
  }
  g_active.store(static_cast<int>(isa), std::memory_order_relaxed);
}

// Every op asks for the level, so that this file, which names the list of kernels, is linked
// wherever an op is, and with it every kernel of a static library.
bool has_kernels(const char* prefix, Isa isa) {
  const KernelList kernels = compiled_kernels();
  for (int i = 0; i < kernels.count; ++i) {
    const Kernel& kernel = kernels.first[i];
    if (kernel.isa == isa && std::strncmp(kernel.name, prefix, std::strlen(prefix)) == 0) {
      return true;
    }
  }
  return false;
}

}  // namespace afnext::cpu
