#include "emulation/error.h"

#include <string_view>

namespace emulation {

std::string describe(const Where& where) {
  const std::string_view path = where.file_name();
  return std::string(path.substr(path.rfind('/') + 1)) + ":" + std::to_string(where.line());
}

void fail(const Where& where, const std::string& what) {
  throw Error(describe(where) + ": " + what);
}

}  // namespace emulation
