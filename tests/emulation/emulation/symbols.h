// Where in the source an instruction came from.
#pragma once

#include <string>

namespace emulation {

// "kernel.h:12" by addr2line where that is installed, else the address.
std::string symbol_of(const void* code);

}  // namespace emulation
