#include "cpu/quantize.h"

#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd/dot.h"
#include "cpu/simd/rows.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr float kTiny = 1e-36f;  // below it a reciprocal of a scale could overflow
constexpr int kFactors = 16;     // scales that are tried: 1, then 1.05 to 0.63 of the plain one

// `count` numbers, padded with zeros to whole vectors.
struct Span {
  const float* x;
  int64_t count;
};

struct Range {
  float low, high;  // zero included
  bool finite;
};

Range range_of(Span s) {
  F32 low{}, high{}, zero{};
  for (int64_t i = 0; i < s.count; i += kLanes) {
    const F32 v = load(s.x + i);
    low = min(v, low), high = max(v, high);
    zero += v * 0.0f;  // NaN and infinity leave NaN
  }
  return {-largest(-low), largest(high), sum(zero) == 0.0f};
}

// How values of a group are found: round(x * inverse) + zero, kept within [low, high].
struct Code {
  float scale = 0.0f, inverse = 0.0f, zero = 0.0f, low, high;

  AFNEXT_INLINE_METHOD F32 operator()(F32 x) const {
    const F32 shifter = broadcast(12582912.0f);  // 1.5 * 2**23: adding it rounds to an integer
    const F32 rounded = ((x * inverse + zero) + shifter) - shifter;
    return min(max(rounded, broadcast(low)), broadcast(high));
  }
};

float round_to_bf16(float x) {
  bf16 rounded;
  from_float(&rounded, x);
  return to_float(rounded);
}

Code with_scale(float scale, float zero, float low, float high) {
  const bool tiny = scale < kTiny && scale > -kTiny;
  return {tiny ? 0.0f : scale, tiny ? 0.0f : 1.0f / scale, zero, low, high};
}

// The code of an int4 group at `factor` of its plain scale.
Code int4_code(Range r, bool zero_points, float factor) {
  if (!zero_points) {
    const float extreme = r.high > -r.low ? r.high : r.low;
    return with_scale(round_to_bf16(extreme / -8.0f * factor), 8.0f, 0.0f, 15.0f);
  }
  Code code =
      with_scale(round_to_bf16((r.high / 15.0f - r.low / 15.0f) * factor), 0.0f, 0.0f, 15.0f);
  const float zero = -r.low * code.inverse + 0.5f;
  code.zero = static_cast<float>(static_cast<int>(zero < 15.0f ? zero : 15.0f));
  return code;
}

// Of the codes that the factors give, the one with the least squared error; the first of equals.
Code search_int4(Span s, Range r, bool zero_points) {
  Code codes[kFactors];
  F32 totals[kFactors] = {};
  for (int f = 0; f < kFactors; ++f) {
    const float factor = f == 0 ? 1.0f : 1.08f - 0.03f * static_cast<float>(f);
    codes[f] = int4_code(r, zero_points, factor);
  }
  if (codes[0].scale == 0.0f) return codes[0];
  for (int64_t i = 0; i < s.count; i += kLanes) {
    const F32 x = load(s.x + i);
    for (int f = 0; f < kFactors; ++f) {
      const F32 off = (codes[f](x) - codes[f].zero) - x * codes[f].inverse;
      totals[f] = fma(off, off, totals[f]);
    }
  }
  float errors[kFactors];
  sum_all<kFactors>(totals, errors);
  int best = 0;
  for (int f = 0; f < kFactors; ++f) {
    const float ratio = codes[f].scale / codes[0].scale;  // the errors are in units of the scale
    errors[f] = codes[f].scale == 0.0f ? __builtin_inff() : errors[f] * ratio * ratio;
    if (errors[f] < errors[best]) best = f;
  }
  return codes[best];
}

Code int8_code(Range r, bool rounded) {
  const float scale = (r.high > -r.low ? r.high : -r.low) / 127.0f;
  return with_scale(rounded ? round_to_bf16(scale) : scale, 0.0f, -127.0f, 127.0f);
}

void write_int8(Span s, const Code& code, int8_t* values) {
  for (int64_t i = 0; i < s.count; i += kLanes) {
    int32_t lanes[kLanes];
    const I32 v = __builtin_convertvector(code(load(s.x + i)), I32);
    std::memcpy(lanes, &v, sizeof(v));
    for (int j = 0; j < kLanes && i + j < s.count; ++j)
      values[i + j] = static_cast<int8_t>(lanes[j]);
  }
}

// The unused half of the last byte of an odd K is written as a zero weight.
void write_int4(Span s, const Code& code, uint8_t* values) {
  for (int64_t i = 0; i < s.count; i += kLanes) {
    uint32_t lanes[kLanes];
    const U32 v = __builtin_convertvector(code(load(s.x + i)), U32);
    std::memcpy(lanes, &v, sizeof(v));
    for (int j = 0; j < kLanes && i + j < s.count; j += 2)
      values[(i + j) / 2] = static_cast<uint8_t>(lanes[j] | lanes[j + 1] << 4);
  }
}

template <typename T>
void rows(const QuantizeArgs& a, int64_t begin, int64_t end) {
  const QuantizedFormat& f = a.format;
  const int64_t group = f.group == 0 ? a.k : f.group, groups = f.groups(a.k);
  float* x = scratch<float>(0, static_cast<size_t>(a.k + kLanes));
  for (int64_t row = begin; row < end; ++row) {
    load_row(static_cast<const T*>(a.weight) + row * a.stride, a.k, x);
    uint8_t* values = static_cast<uint8_t*>(a.values) + row * f.value_bytes(a.k);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = g * group;
      const Span span{x + first, a.k - first < group ? a.k - first : group};
      const Range range = range_of(span);
      if (!range.finite) return a.finite->store(false, std::memory_order_relaxed);
      const Code code =
          f.bits == 4 ? search_int4(span, range, f.zero_points) : int8_code(range, f.group != 0);
      if (f.bits == 8) {
        write_int8(span, code, reinterpret_cast<int8_t*>(values) + first);
      } else {
        write_int4(span, code, values + first / 2);
      }
      const int64_t index = row * groups + g;
      if (f.group == 0) {
        static_cast<float*>(a.scales)[index] = code.scale;
      } else {
        from_float(static_cast<bf16*>(a.scales) + index, code.scale);
      }
      if (f.zero_points) static_cast<uint8_t*>(a.zeros)[index] = static_cast<uint8_t>(code.zero);
    }
  }
}

}  // namespace

void quantize(const QuantizeArgs& args) {
  parallel_for(args.n, 1 + (1 << 14) / (args.k + 1), [&](int64_t begin, int64_t end) {
    args.dtype == DType::f32 ? rows<float>(args, begin, end) : rows<bf16>(args, begin, end);
  });
}

AFNEXT_REGISTER(quantize, QuantizeArgs)

}  // namespace afnext::cpu::AFNEXT_ISA
