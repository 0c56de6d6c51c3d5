// Frames lie in the lanes: one pass transforms kLanes frames at once.
#include "cpu/log_mel.h"

#include <cstring>

#include "cpu/log_mel_tables.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd/fft.h"
#include "cpu/simd/log.h"
#include "cpu/simd/shuffle.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int kMargin = kFrameSamples / 2;  // a frame is centred on its first sample
constexpr int kBlockFrames = 64;            // what a thread takes at a time
constexpr int kBins = kFrameSamples / 2;    // bin 0 and the Nyquist bin lie in no filter
constexpr int kGroupSamples = (kLanes - 1) * kHop + kFrameSamples;
constexpr int kReach = kFrameSamples / kHop;  // whole hops between a frame's first and last sample
constexpr int kHopStride = kLanes + 4;
static_assert(kLanes + kReach <= kHopStride);
constexpr uint32_t kInfinity = 0x7f800000;

struct Window {
  const float* samples;
  int64_t length;
  int64_t audible;  // frames that reach audio; those past them are silent
  float* out;
  int64_t written;  // frames of out

  // Sample i of the window: zeros past the audio, reflected ends.
  float at(int64_t i) const {
    const int64_t inside = i < 0 ? -i : i < kWindowSamples ? i : 2 * (kWindowSamples - 1) - i;
    return inside < length ? samples[inside] : 0.0f;
  }
};

// What the threads that share a window agree on. Powers are at least 0 and order like their bits,
// with infinity and NaN above all finite ones.
struct Progress {
  int64_t first_block;
  uint32_t peak;
  int32_t open_blocks;
};

struct Workspace {
  float hops[kHop * kHopStride];  // samples: number n of hop h at [n * kHopStride + h]
  float spectrum[kFrameSamples * kLanes];
  float power[kBins * kLanes];
  float edge[kGroupSamples];
};

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

Window window_of(const LogMelArgs& a, int64_t i) {
  const int64_t length = a.cu_samples[i + 1] - a.cu_samples[i];
  const int64_t reached = (length + kMargin + kHop - 1) / kHop;
  return {a.samples + a.cu_samples[i], length, length > 0 ? smaller(reached, kWindowFrames) : 0,
          a.out + a.cu_frames[i] * kMelBins, a.cu_frames[i + 1] - a.cu_frames[i]};
}

int64_t blocks_of(const Window& w) {
  return w.audible > 0 ? (w.audible + kBlockFrames - 1) / kBlockFrames : 1;
}

// The hops of kLanes frames from `first` on, transposed. Frames overlap, and share them: frame f is
// hop f, hop f + 1 and half of hop f + 2.
void load_hops(const Window& w, int64_t first, Workspace* work) {
  const int64_t start = first * kHop - kMargin;
  const float* x = w.samples + start;
  if (start < 0 || start + kGroupSamples > w.length) {
    for (int i = 0; i < kGroupSamples; ++i) work->edge[i] = w.at(start + i);
    x = work->edge;
  }
  const float* past = x + kLanes * kHop;
  for (int n = 0; n < kHop; n += kLanes) {
    F32 rows[kLanes];
    for (int h = 0; h < kLanes; ++h) {
      rows[h] = load(x + h * kHop + n);
      __builtin_prefetch(past + h * kHop + n);  // of the next group: hops are far apart
    }
    transpose(rows);
    const bool halved = n >= kFrameSamples % kHop;  // of the last hop
    const F32 a = load(past + n), b = halved ? F32{} : load(past + kHop + n);
    float pairs[2 * kLanes];
    store(pairs, zip_low(a, b));
    store(pairs + kLanes, zip_high(a, b));
    for (int i = 0; i < kLanes; ++i) {
      float* hops = work->hops + (n + i) * kHopStride;
      store(hops, rows[i]);
      std::memcpy(hops + kLanes, pairs + 2 * i, 2 * sizeof(float));
    }
  }
}

// Samples 2 m and 2 m + 1 of each frame as one complex number, times the Hann window: each product
// rounded once, and not anew (by a fused multiply-add) in every sum that it enters, which would
// leave more noise under a tone.
AFNEXT_INLINE Complex load_pair(const float* hops, int m, const LogMelTables& t) {
  const int hop = 2 * m / kHop;
  const float* p = hops + (2 * m - hop * kHop) * kHopStride + hop;
  return {in_register(load(p) * t.hann[2 * m]),
          in_register(load(p + kHopStride) * t.hann[2 * m + 1])};
}

// Even samples as real and odd ones as imaginary parts, 200 = 8 x 25 points; output k is left at
// slot[k] of x.
void transform(const float* hops, const LogMelTables& t, float* x) {
  for (int n = 0; n < 25; ++n) {
    Complex u[8];
    for (int i = 0; i < 8; ++i) u[i] = load_pair(hops, 25 * i + n, t);
    dft8(u);
    store_complex(x, n, u[0]);
    for (int k = 1; k < 8; ++k) {
      store_complex(x, 25 * k + n, turn(u[k], t.by_200[k][n].cos, t.by_200[k][n].sin));
    }
  }
  for (int k = 0; k < 8; ++k) {
    float* y = x + 25 * k * 2 * kLanes;
    for (int n = 0; n < 5; ++n) {
      Complex u[5];
      for (int i = 0; i < 5; ++i) u[i] = load_complex(y, 5 * i + n);
      dft5(u[0], u[1], u[2], u[3], u[4]);
      store_complex(y, n, u[0]);
      for (int i = 1; i < 5; ++i) {
        store_complex(y, 5 * i + n, turn(u[i], t.by_25[i][n].cos, t.by_25[i][n].sin));
      }
    }
    for (int i = 0; i < 5; ++i) {
      Complex u[5];
      for (int n = 0; n < 5; ++n) u[n] = load_complex(y, 5 * i + n);
      dft5(u[0], u[1], u[2], u[3], u[4]);
      for (int n = 0; n < 5; ++n) store_complex(y, 5 * i + n, u[n]);
    }
  }
}

// The power of bins 1 .. 199 of the 400 real samples, times 4.
void power_spectrum(const float* x, const LogMelTables& t, float* power) {
  for (int k = 1; k <= kBins / 2; ++k) {
    const Complex a = load_complex(x, t.slot[k]), b = load_complex(x, t.slot[kBins - k]);
    const Complex even = {a.re + b.re, a.im - b.im}, odd = {a.im + b.im, b.re - a.re};
    const Complex turned = turn(odd, t.by_400[k].cos, t.by_400[k].sin);
    const Complex low = even + turned, high = even - turned;
    store(power + k * kLanes, low.re * low.re + low.im * low.im);
    store(power + (kBins - k) * kLanes, high.re * high.re + high.im * high.im);
  }
}

// Mel filters and logarithm of `frames` <= kLanes frames, of which `written` go to out [., 128].
// Returns the highest power seen, or'ed over `peak`.
U32 mel_bins(const float* power, const LogMelTables& t, int64_t frames, int64_t written, U32 peak,
             float* out) {
  for (int m = 0; m < kMelBins; m += kLanes) {
    F32 rows[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      const float* bins = power + t.first[m + j] * kLanes;
      F32 sum{};
      for (int i = t.begin[m + j]; i < t.begin[m + j + 1]; ++i, bins += kLanes) {
        sum = fma(load(bins), broadcast(t.weights[i]), sum);
      }
      rows[j] = sum;
    }
    transpose(rows);
    for (int64_t f = 0; f < frames; ++f) {
      const U32 bits = bit_cast<U32>(rows[f]);
      peak = bits > peak ? bits : peak;
      if (f < written) {
        __builtin_prefetch(out + (f + kLanes) * kMelBins + m, 1);  // rows of the next group
        store(out + f * kMelBins + m, max(log10(rows[f]), broadcast(-10.0f)));
      }
    }
  }
  return peak;
}

// Logarithms of a block of frames; returns the bits of its highest power.
uint32_t block(const Window& w, int64_t begin, int64_t end, const LogMelTables& t,
               Workspace* work) {
  U32 peak{};
  for (int64_t f = begin; f < end; f += kLanes) {
    load_hops(w, f, work);
    transform(work->hops, t, work->spectrum);
    power_spectrum(work->spectrum, t, work->power);
    peak = mel_bins(work->power, t, smaller(kLanes, end - f), w.written - f, peak,
                    w.out + f * kMelBins);
  }
  uint32_t highest = 0;
  for (int i = 0; i < kLanes; ++i) highest = peak[i] > highest ? peak[i] : highest;
  return highest;
}

// Floors and scales the frames of a window whose blocks are all done.
void finish(const Window& w, uint32_t peak) {
  const F32 loudest = max(log10(broadcast(bit_cast<float>(peak))), broadcast(-10.0f));
  const F32 floor = peak < kInfinity ? loudest - 8.0f : broadcast(__builtin_nanf(""));
  const F32 silence = max(broadcast(-10.0f), floor) * 0.25f + 1.0f;
  const int64_t heard = peak < kInfinity ? smaller(w.audible, w.written) * kMelBins : 0;
  for (int64_t i = 0; i < heard; i += kLanes) {
    store(w.out + i, max(load(w.out + i), floor) * 0.25f + 1.0f);
  }
  for (int64_t i = heard; i < w.written * kMelBins; i += kLanes) store(w.out + i, silence);
}

// Whoever completes the last block of a window finishes it, while it is still in the cache.
void complete(const Window& w, uint32_t peak, Progress* progress) {
  uint32_t seen = __atomic_load_n(&progress->peak, __ATOMIC_RELAXED);
  while (seen < peak && !__atomic_compare_exchange_n(&progress->peak, &seen, peak, true,
                                                     __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  if (__atomic_sub_fetch(&progress->open_blocks, 1, __ATOMIC_ACQ_REL) == 0) {
    finish(w, __atomic_load_n(&progress->peak, __ATOMIC_RELAXED));
  }
}

}  // namespace

void log_mel(const LogMelArgs& a) {
  Progress* progress = scratch<Progress>(0, a.windows);
  int64_t blocks = 0;
  for (int64_t i = 0; i < a.windows; ++i) {
    const int64_t count = blocks_of(window_of(a, i));
    progress[i] = {blocks, 0, static_cast<int32_t>(count)};
    blocks += count;
  }
  parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
    Workspace* work = scratch<Workspace>(1, 1);
    int64_t i = 0;
    while (i + 1 < a.windows && progress[i + 1].first_block <= begin) ++i;
    for (int64_t b = begin; b < end; ++b) {
      if (i + 1 < a.windows && progress[i + 1].first_block == b) ++i;
      const Window w = window_of(a, i);
      const int64_t first = (b - progress[i].first_block) * kBlockFrames;
      const int64_t last = smaller(first + kBlockFrames, w.audible);
      complete(w, block(w, first, last, *a.tables, work), progress + i);
    }
  });
}

AFNEXT_REGISTER(log_mel, LogMelArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
