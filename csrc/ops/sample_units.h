// Integers in which both backends of `sample` order tokens and add up probabilities: sums are exact
// and the same in any order.
#pragma once

#include <cstdint>

namespace afnext::sampling {

// A token's distance is (largest logit - its logit) / temperature; its key is that in units of
// 2**-27, its mass exp(-distance) in units of 2**-40. From kFarthest on there is no mass left:
// such tokens are never drawn, and a cut by count that reaches them cuts nothing.
constexpr float kKeyUnits = 0x1p27f;
constexpr float kMassUnits = 0x1p40f;
constexpr float kFarthest = 28.0f;  // exp(-28) * 2**40 < 1; 28 * 2**27 < 2**32

// Tokens are found by their keys' digits, the first of which tells distances of 1/64 apart.
constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr int kFirstShift = 32 - kDigitBits;

}  // namespace afnext::sampling
