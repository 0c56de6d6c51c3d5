#include "emulation/symbols.h"

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <memory>

namespace emulation {

std::string symbol_of(const void* code) {
  Dl_info info;
  char address[32];
  if (dladdr(code, &info) == 0 || info.dli_fname == nullptr) {
    std::snprintf(address, sizeof(address), "%p", code);
    return address;
  }
  // The call is the instruction before the one that it returns to.
  const auto offset =
      reinterpret_cast<uintptr_t>(code) - 1 - reinterpret_cast<uintptr_t>(info.dli_fbase);
  std::snprintf(address, sizeof(address), "0x%zx", static_cast<size_t>(offset));
  const std::string command =
      std::string("addr2line -e '") + info.dli_fname + "' " + address + " 2>/dev/null";
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), pclose);
  char line[1024];
  if (pipe == nullptr || std::fgets(line, sizeof(line), pipe.get()) == nullptr) return address;
  std::string text = line;
  text.erase(text.find_first_of(" \n"));
  text.erase(0, text.rfind('/') + 1);
  return text.empty() || text[0] == '?' ? address : text;
}

}  // namespace emulation
