// Constants of the log-mel spectrogram: window, twiddle factors, mel filters.
#pragma once

#include <cstdint>

namespace afnext::cpu {

constexpr int kWindowSamples = 480000, kWindowFrames = 3000;  // 30 s
constexpr int kFrameSamples = 400, kHop = 160, kMelBins = 128;

struct Twiddle {
  float cos, sin;
};

// What a bin counts in the filter in which it rises, and in the one before, in which it falls.
struct Slopes {
  float rise, fall;
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
  // The same by bins: those from peak[m] to peak[m + 1] - 1 rise in filter m.
  Slopes slopes[kFrameSamples / 2];
  int16_t peak[kMelBins + 2];
};

// Built in double, once.
const LogMelTables& log_mel_tables();

}  // namespace afnext::cpu
