// What a launch throws: a kernel that hardware would run wrongly, hang on, or refuse.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>

namespace emulation {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

using Where = std::source_location;

// "kernel.h:12"
std::string describe(const Where& where);

// "kernel.h:12: what"
[[noreturn]] void fail(const Where& where, const std::string& what);

}  // namespace emulation
