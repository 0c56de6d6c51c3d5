// Moves bytes and is bound by memory: compiled once, for every level.
#include "cpu/pack_quantized.h"

#include <cstring>

#include "cpu/parallel.h"

namespace afnext::cpu {
namespace {

// The integer at element k of a row, as the steps hold it (int8 is offset by 128).
uint8_t value_at(const uint8_t* row, int bits, int64_t k) {
  if (bits == 8) return row[k] ^ 0x80;
  return k % 2 == 0 ? row[k / 2] & 15 : row[k / 2] >> 4;
}

uint16_t bf16_of_small(uint8_t integer) {  // exact below 256
  const float x = integer;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

float float_of(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// Where a group of a panel begins.
uint8_t* group_at(const PackedView& v, const QuantizedPanel& q, int64_t panel, int64_t group) {
  return static_cast<uint8_t*>(v.data) + panel * q.bytes + q.header + group * q.group_bytes;
}

// The step's byte of (element of the group, column), and how far up its value lies.
struct Place {
  int64_t byte;
  int shift;
  Place(int bits, int64_t element, int64_t column) {
    const int64_t quad = element / 4, step = bits == 8 ? quad : quad / 2;
    byte = step * kStepBytes + column * 4 + element % 4;
    shift = bits == 4 && quad % 2 == 1 ? 4 : 0;
  }
};

void pack_panel(const PackQuantizedArgs& a, const QuantizedPanel& q, int64_t panel) {
  const PackedView& v = a.view;
  const int64_t groups = q.blocks * q.groups, kept = (v.k + q.group - 1) / q.group;
  const int64_t row_bytes = q.bits == 8 ? v.k : (v.k + 1) / 2;
  std::memset(group_at(v, q, panel, 0) - q.header, 0, static_cast<size_t>(q.bytes));
  for (int64_t column = 0; column < kPanelColumns; ++column) {
    const int64_t row = v.row(panel, column);
    if (row < 0) continue;
    const uint8_t* values = a.values + row * row_bytes;
    if (q.header > 0) {
      std::memcpy(group_at(v, q, panel, 0) - q.header + 4 * column,
                  static_cast<const float*>(a.scales) + row, 4);
    }
    for (int64_t g = 0; g < groups; ++g) {
      uint8_t* group = group_at(v, q, panel, g);
      uint8_t zero = q.bits == 8 ? 128 : 8;
      if (q.prefix > 0 && g < kept) {
        std::memcpy(group + 2 * column, static_cast<const uint16_t*>(a.scales) + row * kept + g, 2);
        if (q.zero_points) {
          zero = a.zeros[row * kept + g];
          const uint16_t bits = bf16_of_small(zero);
          std::memcpy(group + 2 * (kPanelColumns + column), &bits, 2);
        }
      }
      for (int64_t i = 0; i < q.group; ++i) {
        const Place place(q.bits, i, column);
        const int64_t k = g * q.group + i;
        const uint8_t value = k < v.k ? value_at(values, q.bits, k) : zero;
        group[q.prefix + place.byte] |= static_cast<uint8_t>(value << place.shift);
      }
    }
  }
}

void unpack_panel(const PackedView& v, const QuantizedPanel& q, int64_t panel, float* out) {
  for (int64_t column = 0; column < kPanelColumns; ++column) {
    const int64_t row = v.row(panel, column);
    if (row < 0) continue;
    for (int64_t k = 0; k < v.k; ++k) {
      const uint8_t* group = group_at(v, q, panel, k / q.group);
      float scale, zero = q.bits == 8 ? 128.0f : 8.0f;
      if (q.header > 0) {
        std::memcpy(&scale, group_at(v, q, panel, 0) - q.header + 4 * column, 4);
      } else {
        const uint16_t* prefix = reinterpret_cast<const uint16_t*>(group);
        scale = float_of(prefix[column]);
        if (q.zero_points) zero = float_of(prefix[kPanelColumns + column]);
      }
      const Place place(q.bits, k % q.group, column);
      const int value = group[q.prefix + place.byte] >> place.shift & (q.bits == 8 ? 255 : 15);
      out[row * v.k + k] = (static_cast<float>(value) - zero) * scale;
    }
  }
}

}  // namespace

void pack_quantized(const PackQuantizedArgs& args) {
  const QuantizedPanel q(args.view);
  parallel_for(args.view.panels(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) pack_panel(args, q, panel);
  });
}

void unpack_quantized(const PackedView& view, float* out) {
  const QuantizedPanel q(view);
  parallel_for(view.panels(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) unpack_panel(view, q, panel, out);
  });
}

}  // namespace afnext::cpu
