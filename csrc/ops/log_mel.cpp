#include "afnext/log_mel.h"

#include "afnext/error.h"
#include "cpu/huge_pages.h"
#include "cpu/log_mel.h"
#include "cpu/log_mel_tables.h"

namespace afnext {

constinit cpu::KernelTable<cpu::LogMelArgs> cpu::log_mel_kernels;

void log_mel(const TensorView& samples, const TensorView& cu_samples, const TensorView& cu_frames,
             const TensorView& out) {
  const Check check("log_mel");
  check.exact(samples, "samples", DType::f32, {samples.numel()});
  check.offsets(cu_samples, "cu_samples", DType::i64, samples.shape[0]);
  check.exact(cu_frames, "cu_frames", DType::i64, {cu_samples.shape[0]});
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
  cpu::expect_huge_pages(out.data, out.numel() * sizeof(float));
  cpu::log_mel_kernels(
      {samples.as<const float>(), ends, frames, windows, &cpu::log_mel_tables(), out.as<float>()});
}

}  // namespace afnext
