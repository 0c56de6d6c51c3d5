// mbarriers: phases that complete when every expected arrival and byte has come.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "emulation/error.h"
#include "emulation/races.h"

namespace emulation {

class Mbarriers {
 public:
  void clear() { barriers_.clear(); }

  void init(uint64_t* barrier, int arrivals, const Where& where);
  void invalidate(uint64_t* barrier, const Where& where);
  // One arrival, which also expects `bytes` more of this phase (mbarrier.arrive.expect_tx).
  void arrive(uint64_t* barrier, uint32_t bytes, const Where& where);
  // Whether the phase of this parity is complete; what it orders is then in the caller's past.
  bool test(const uint64_t* barrier, int parity, const Where& where);
  void wait(const uint64_t* barrier, int parity, const Where& where);
  // The copy engine brings bytes.
  void complete(uint32_t address, uint32_t bytes, const Clocks& clocks, const Where& where);

 private:
  struct State {
    int arrivals = 0, pending = 0;
    int64_t bytes = 0;
    bool odd = false;  // the parity of the phase that is under way
    std::vector<int> waiting;
    Clocks arriving{}, completed{};
    Where where;
  };
  State& find(const uint64_t* barrier, const Where& where);
  static void try_complete(State& state);

  std::map<uint32_t, State> barriers_;
};

}  // namespace emulation
