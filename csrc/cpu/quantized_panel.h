// Where things lie in a panel of a quantised weight (see afnext/pack_quantized.h).
#pragma once

#include "afnext/pack.h"

namespace afnext::cpu {

constexpr int64_t kBlock = 128;  // elements of K in a block

struct QuantizedPanel {
  int bits;
  bool zero_points;
  int64_t header;  // bytes of float32 scales before the blocks: 128, or 0 where groups have them
  int64_t group;   // elements of K
  int64_t groups;  // of a block
  int64_t prefix;  // bytes of scales and zeros before the steps of a group
  int64_t steps;   // of a group
  int64_t group_bytes;  // all of a group
  int64_t blocks;       // of a panel
  int64_t bytes;        // all of a panel

  explicit QuantizedPanel(const PackedView& v)
      : bits(v.format == WeightFormat::int4 ? 4 : 8),
        zero_points(v.zero_points),
        header(v.group == 0 ? 4 * kPanelColumns : 0),
        group(v.group == 0 ? kBlock : v.group),
        groups(kBlock / group),
        prefix(v.group == 0 ? 0 : (v.zero_points ? 4 : 2) * kPanelColumns),
        steps(group * bits / 32),
        group_bytes(prefix + steps * kStepBytes),
        blocks((v.k + kBlock - 1) / kBlock),
        bytes(header + blocks * groups * group_bytes) {}

  // How many blocks of x share a scale: one outlier spoils them at most. Bytes that meet weights
  // without groups share one for four, for whose sums float32 is then needed but once.
  int64_t scale_blocks(int activation_bits) const {
    return header > 0 && activation_bits == 8 ? 4 : 1;
  }
};

}  // namespace afnext::cpu
