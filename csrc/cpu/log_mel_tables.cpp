#include "cpu/log_mel_tables.h"

#include <algorithm>
#include <cmath>

namespace afnext::cpu {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kSampleRate = 16000.0;

Twiddle twiddle(int numerator, int denominator) {
  const double angle = -2 * kPi * numerator / denominator;
  return {static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle))};
}

// Slaney's mel scale (Auditory Toolbox, 1998): linear below 1 kHz at 200/3 Hz a mel, above it 27
// steps to a factor of 6.4.
constexpr double kHertzPerMel = 200.0 / 3, kKnee = 1000.0, kKneeMel = kKnee / kHertzPerMel;

double hertz_to_mel(double hertz) {
  return hertz < kKnee ? hertz / kHertzPerMel
                       : kKneeMel + std::log(hertz / kKnee) * 27 / std::log(6.4);
}

double mel_to_hertz(double mel) {
  return mel < kKneeMel ? mel * kHertzPerMel
                        : kKnee * std::exp((mel - kKneeMel) * std::log(6.4) / 27);
}

void build_filters(LogMelTables* t) {
  const double top = hertz_to_mel(kSampleRate / 2);
  const auto edge = [&](int i) { return mel_to_hertz(top * i / (kMelBins + 1)); };
  int count = 0;
  for (int m = 0; m < kMelBins; ++m) {
    const double low = edge(m), peak = edge(m + 1), high = edge(m + 2);
    t->first[m] = 0;
    t->begin[m] = static_cast<int16_t>(count);
    for (int bin = 1; bin < kFrameSamples / 2; ++bin) {
      const double hertz = bin * kSampleRate / kFrameSamples;
      const double height = std::min((hertz - low) / (peak - low), (high - hertz) / (high - peak));
      if (height <= 0) continue;
      if (count == t->begin[m]) t->first[m] = static_cast<int16_t>(bin);
      // Unit area, and a quarter because the spectrum is left at twice its amplitude.
      t->weights[count++] = static_cast<float>(height * 2 / (high - low) / 4);
    }
  }
  t->begin[kMelBins] = static_cast<int16_t>(count);
}

void build_quads(LogMelTables* t) {
  int count = 0;
  for (int m = 0; m < kMelBins; ++m) {
    const int g = m / 4;
    if (m % 4 == 0) {
      t->quad_first[g] = t->first[m];
      t->quad_begin[g] = static_cast<int16_t>(count);
    }
    for (int i = t->begin[m]; i < t->begin[m + 1]; ++i) {
      const int bin = t->first[m] + i - t->begin[m];
      const int at = t->quad_begin[g] + bin - t->quad_first[g];
      t->quads[at][m % 4] = t->weights[i];
      count = std::max(count, at + 1);
    }
  }
  t->quad_begin[kMelBins / 4] = static_cast<int16_t>(count);
}

LogMelTables build() {
  LogMelTables t = {};
  for (int i = 0; i < kFrameSamples; ++i) {
    t.hann[i] = static_cast<float>(0.5 - 0.5 * std::cos(2 * kPi * i / kFrameSamples));
  }
  for (int k = 0; k < 8; ++k) {
    for (int n = 0; n < 25; ++n) t.by_200[k][n] = twiddle(n * k, 200);
  }
  for (int k = 0; k < 5; ++k) {
    for (int n = 0; n < 5; ++n) t.by_25[k][n] = twiddle(n * k, 25);
  }
  for (int k = 0; k <= 100; ++k) t.by_400[k] = twiddle(k, 400);
  for (int k = 0; k < 200; ++k) {
    const int outer = k % 8, inner = k / 8;
    t.slot[k] = static_cast<uint8_t>(25 * outer + 5 * (inner % 5) + inner / 5);
  }
  build_filters(&t);
  build_quads(&t);
  return t;
}

}  // namespace

const LogMelTables& log_mel_tables() {
  static const LogMelTables tables = build();
  return tables;
}

}  // namespace afnext::cpu
