// Whether rows may be rounded to 8 bits: where outliers make that costly, they stay at 16.
#pragma once

#include "cpu/packed_linear.h"

namespace afnext::cpu {

// 8 or 16. Few rows wait for the weights whatever x is. Of many, 8 bits halve the work; they are
// taken where rounding x so, with a scale for neighbours in K, is expected to be off by at most
// 1 % of it (root of the squares over all of x). NaN and infinity stay at 16 bits.
int activation_bits(const PackedLinearArgs& args);

}  // namespace afnext::cpu
