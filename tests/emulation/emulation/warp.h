// What the lanes of a warp do together: the last lane to come does it for all.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "emulation/error.h"
#include "emulation/races.h"
#include "emulation/warpgroup.h"

namespace emulation {

class Warp;

// Arguments by lane; those of lanes outside `mask` are null.
using Arguments = std::array<void*, kLanes>;
using Collective = void (*)(Warp& warp, uint32_t mask, const Arguments& arguments,
                            const Where& where);

constexpr uint32_t kAllLanes = 0xffffffff;

class Warp {
 public:
  Warp(int index, int lanes) : group(index), index_(index), lanes_(lanes) {}

  // Waits for all lanes of `mask` to come to this place with this operation.
  void meet(Collective operation, uint32_t mask, void* argument, const Where& where);

  int index() const { return index_; }
  int thread(int lane) const { return index_ * kLanes + lane; }

  WarpgroupProducts group;

 private:
  struct Meeting {
    Collective operation;
    uint32_t mask, arrived = 0;
    Where where;
    Arguments arguments{};
  };
  Meeting& meeting(Collective operation, uint32_t mask, const Where& where);

  int index_, lanes_;
  std::vector<Meeting> meetings_;  // of disjoint lanes
};

// --- the operations
// ----------------------------------------------------------------------------------

struct Shuffle {
  enum Kind { indexed, up, down, exclusive_or } kind;
  uint32_t value;
  int operand, width;
};
struct Vote {
  bool predicate;
  uint32_t ballot;
};
struct Reduction {
  enum Kind { add, min, max, bit_and, bit_or, bit_xor } kind;
  uint32_t value;
};
struct MatrixMove {  // ldmatrix and stmatrix: `count` 8 x 8 matrices of 16 bits
  void* row;
  uint32_t* registers;
  int count;
  bool transposed;
};
enum class Element { bf16, f16, s8, e4m3 };
struct MatrixProduct {  // mma.sync m16n8: d = a @ b + c, 32 bytes of k
  void* d;
  const uint32_t *a, *b;
  const void* c;
  Element element;
};

void sync_warp(Warp&, uint32_t, const Arguments&, const Where&);
void shuffle(Warp&, uint32_t, const Arguments&, const Where&);
void vote(Warp&, uint32_t, const Arguments&, const Where&);
void reduce(Warp&, uint32_t, const Arguments&, const Where&);
void load_matrix(Warp&, uint32_t, const Arguments&, const Where&);
void store_matrix(Warp&, uint32_t, const Arguments&, const Where&);
void multiply_matrix(Warp&, uint32_t, const Arguments&, const Where&);

}  // namespace emulation
