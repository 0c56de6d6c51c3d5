// What the kernels run on: instruction set and threads.
#pragma once

#include <string>
#include <vector>

namespace afnext {

// Levels, in rising order: baseline avx2 avx_vnni avx512 avx512_bf16 amx. An op runs its kernel of
// the highest level at or below the one in use.

// The level in use: the machine's best, capped by the environment variable AFNEXT_CPU_ISA or by
// set_cpu_isa. Throws Error when the variable holds no level's name.
const char* cpu_isa();
// The machine's best level.
const char* detected_cpu_isa();
// Whether the machine runs kernels of this level: not of avx_vnni on cores that have VNNI in its
// AVX-512 form alone. Throws Error on an unknown name.
bool can_run_cpu_isa(const char* name);
// Levels that this build holds kernels for, in rising order: of the ops whose name begins with
// `op`, which is all by default.
std::vector<std::string> compiled_cpu_isas(const std::string& op = "");
// Caps the level of this process. Throws Error on a level that the machine lacks.
void set_cpu_isa(const char* name);

// Threads that share an op's work, the caller included: AFNEXT_NUM_THREADS, else the cores this
// process may run on.
int num_threads();
// 1 to 1024. Throws Error otherwise.
void set_num_threads(int threads);

}  // namespace afnext
