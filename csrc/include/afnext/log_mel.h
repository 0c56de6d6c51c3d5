#pragma once

#include "afnext/tensor.h"

namespace afnext {

// Whisper's log-mel spectrogram of packed windows of 16 kHz audio, each zero-padded to 480,000
// samples: periodic Hann window of 400, hop 160, reflected ends, power, 128 slaney mel bins, log10
// clamped at 1e-10, floored at the window's maximum - 8, then (x + 4) / 4.
//
//   samples: float32 [S]; on CUDA also int16, worth 1 / 32768 each.
//   cu_samples: int64 [N + 1], 0 .. S, windows of at most 480,000; on the CPU.
//   cu_frames: int64 [N + 1], 0 .. F, at most 3,000 frames a window; on the CPU.
//   out: float32 [F, 128]; on CUDA aligned to 16 bytes.
//
// A window whose spectrum is not finite (a NaN, an infinity, samples beyond about 1e17) is NaN in
// all of its frames; other windows do not notice.
void log_mel(const TensorView& samples, const TensorView& cu_samples, const TensorView& cu_frames,
             const TensorView& out, Stream stream = {});

}  // namespace afnext
