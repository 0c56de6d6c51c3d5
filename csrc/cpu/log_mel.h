#pragma once

#include "cpu/isa.h"

namespace afnext::cpu {

struct LogMelTables;

struct LogMelArgs {
  const float* samples;
  const int64_t *cu_samples, *cu_frames;  // [windows + 1]
  int64_t windows;
  const LogMelTables* tables;
  float* out;  // [cu_frames[windows], 128]
};

extern KernelTable<LogMelArgs> log_mel_kernels;

}  // namespace afnext::cpu
