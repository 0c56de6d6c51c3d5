// Constants of the log-mel spectrogram: window, twiddle factors, mel filters.
#pragma once

#include <cstdint>

namespace afnext::cpu {

constexpr int kWindowSamples = 480000, kWindowFrames = 3000;  // 30 s
constexpr int kFrameSamples = 400, kHop = 160, kMelBins = 128;

struct Twiddle {
  float cos, sin;
};

struct LogMelTables {
  float hann[kFrameSamples];  // periodic
  // Of the complex transform of 200 = 8 x 25 and 25 = 5 x 5: exp(-2 pi i n k / 200), / 25.
  Twiddle by_200[8][25], by_25[5][5];
  // That makes 400 real points of 200 complex ones: exp(-2 pi i k / 400).
  Twiddle by_400[101];
  uint8_t slot[200];  // where the transform in place leaves output k
  // Filter m weighs bins first[m] .. with weights[begin[m]] .. weights[begin[m + 1] - 1].
  int16_t first[kMelBins], begin[kMelBins + 1];
  float weights[400];  // a bin lies in at most two filters
  // The same for four filters at once, 4 g .. 4 g + 3: bins quad_first[g] .. with
  // quads[quad_begin[g]] .. quads[quad_begin[g + 1] - 1], zero where a filter does not reach.
  int16_t quad_first[kMelBins / 4], quad_begin[kMelBins / 4 + 1];
  float quads[256][4];
};

// Built in double, once.
const LogMelTables& log_mel_tables();

}  // namespace afnext::cpu
