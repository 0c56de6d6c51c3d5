// wgmma: a warpgroup's products of tiles in shared memory, which run when somebody waits for them.
//
// Every warp computes its own 16 of the 64 rows. Accumulators read as NaN until they are waited
// for.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <vector>

#include "emulation/error.h"
#include "emulation/races.h"

namespace emulation {

enum class Element;

// wgmma.mma_async m64n<n>: k is 32 bytes.
struct WarpgroupProduct {
  float* d;  // n / 2 of this lane
  int n;
  const uint32_t* a;      // four registers of this lane, or null
  uint64_t a_descriptor;  // else where a lies
  uint64_t b_descriptor;
  bool accumulate;            // else d starts from zero
  bool a_by_rows, b_by_rows;  // rows of memory run along m or n ("MN-major"), not along k
  Element element;
};

class WarpgroupProducts {
 public:
  explicit WarpgroupProducts(int warp) : warp_(warp) {}

  void fence() { fenced_ = a_fenced_ = true; }
  void issue(const std::array<void*, kLanes>& calls, const Where& where);
  void commit();
  void wait(int pending);
  void check_end() const;

 private:
  struct Issued {
    std::array<WarpgroupProduct, kLanes> lanes;
    std::array<std::array<uint32_t, 4>, kLanes> a;
    uint32_t issued;
    Where where;
  };
  void run(const Issued& product);
  void give_back();

  int warp_;
  bool fenced_ = false;
  bool a_fenced_ = false;  // also registers that are made between groups, as a
  std::vector<Issued> open_;
  std::deque<std::vector<Issued>> groups_;
  // What accumulators hold while they are in flight, by lane and address.
  std::array<std::map<float*, std::vector<float>>, kLanes> held_;
};

}  // namespace emulation
