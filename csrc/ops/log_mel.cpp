#include "afnext/log_mel.h"

#include "afnext/error.h"
#include "cpu/huge_pages.h"
#include "cpu/log_mel.h"
#include "cpu/log_mel_tables.h"
#include "cuda/backend.h"
#include "cuda/log_mel.h"

namespace afnext {

constinit cpu::KernelTable<cpu::LogMelArgs> cpu::log_mel_kernels;

void log_mel(const TensorView& samples, const TensorView& cu_samples, const TensorView& cu_frames,
             const TensorView& out, Stream stream) {
  const Check check("log_mel", samples);
  const bool integers = samples.dtype == DType::i16;
  if (integers && !on_cuda(samples)) {
    check.fail("samples must be float32 on the CPU, got " + describe(samples));
  }
  check.exact(samples, "samples", integers ? DType::i16 : DType::f32, {samples.numel()});
  check.offsets(cu_samples, "cu_samples", DType::i64, samples.shape[0]);
  check.metadata(cu_frames, "cu_frames", DType::i64, {cu_samples.shape[0]});
  check.floating(out, "out", 2);
  check.offsets(cu_frames, "cu_frames", DType::i64, out.shape[0]);
  check.exact(out, "out", DType::f32, {out.shape[0], cpu::kMelBins});
  const int64_t windows = cu_samples.shape[0] - 1;
  const auto *ends = cu_samples.as<const int64_t>(), *frames = cu_frames.as<const int64_t>();
  for (int64_t i = 0; i < windows; ++i) {
    check.require(ends[i + 1] - ends[i] <= cpu::kWindowSamples,
                  "cu_samples must cut windows of at most 480000 samples");
    check.require(frames[i + 1] - frames[i] <= cpu::kWindowFrames,
                  "cu_frames must give a window at most 3000 frames");
  }
  if (out.shape[0] == 0) return;
  if constexpr (kCuda) {
    if (on_cuda(out)) {
      check.require(reinterpret_cast<uintptr_t>(out.data) % 16 == 0,
                    "out must be aligned to 16 bytes");
      return cuda::log_mel(samples, cu_samples, cu_frames, out, stream);
    }
  }
  cpu::expect_huge_pages(out.data, out.numel() * sizeof(float));
  cpu::log_mel_kernels(
      {samples.as<const float>(), ends, frames, windows, &cpu::log_mel_tables(), out.as<float>()});
}

}  // namespace afnext
