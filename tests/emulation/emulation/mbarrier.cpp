#include "emulation/mbarrier.h"

#include <string>

#include "emulation/block.h"

namespace emulation {
namespace {

// What an initialised one holds: whoever overwrites it is found out.
constexpr uint64_t kSeal = 0x6d62617272696572;

}  // namespace

void Mbarriers::init(uint64_t* barrier, int arrivals, const Where& where) {
  Block& block = Block::current();
  if (arrivals < 1 || arrivals >= 1 << 20)
    fail(where, "an mbarrier expects 1 to 2^20 - 1 arrivals");
  const uint32_t address = block.shared.check(barrier, 8, 8, "mbarrier.init", where);
  if (block.options.detect_races) block.races.write(address, 8, block.accessor(where));
  *barrier = kSeal;
  State state;
  state.arrivals = state.pending = arrivals;
  state.where = where;
  barriers_[address] = state;
}

void Mbarriers::invalidate(uint64_t* barrier, const Where& where) {
  Block& block = Block::current();
  find(barrier, where);
  if (block.options.detect_races) {
    block.races.write(block.shared.address(barrier), 8, block.accessor(where));
  }
  barriers_.erase(block.shared.address(barrier));
}

Mbarriers::State& Mbarriers::find(const uint64_t* barrier, const Where& where) {
  Block& block = Block::current();
  const uint32_t address = block.shared.check(barrier, 8, 8, "an mbarrier", where);
  const auto found = barriers_.find(address);
  if (found == barriers_.end()) fail(where, "an mbarrier that nobody has initialised");
  if (*barrier != kSeal) {
    fail(where, "the mbarrier of " + describe(found->second.where) + " has been overwritten");
  }
  if (block.options.detect_races) block.races.read(address, 8, block.accessor(where));
  return found->second;
}

void Mbarriers::try_complete(State& state) {
  if (state.pending > 0 || state.bytes != 0) return;
  state.odd = !state.odd, state.pending = state.arrivals;
  state.completed = state.arriving;
  for (int linear : state.waiting) Block::current().wake(linear);
  state.waiting.clear();
}

void Mbarriers::arrive(uint64_t* barrier, uint32_t bytes, const Where& where) {
  Block& block = Block::current();
  State& state = find(barrier, where);
  if (state.pending == 0) {
    fail(where, "more arrivals at an mbarrier than the " + std::to_string(state.arrivals) +
                    " that " + describe(state.where) + " expects");
  }
  const int warp = block.thread().warp;
  join(state.arriving, block.races.clocks(warp));
  block.races.tick(warp);
  state.bytes += bytes, --state.pending;
  try_complete(state);
}

bool Mbarriers::test(const uint64_t* barrier, int parity, const Where& where) {
  const State& state = find(barrier, where);
  if (state.odd == (parity % 2 != 0)) return false;
  Block& block = Block::current();
  block.races.acquire(block.thread().warp, state.completed);
  return true;
}

void Mbarriers::wait(const uint64_t* barrier, int parity, const Where& where) {
  while (!test(barrier, parity, where)) {
    find(barrier, where).waiting.push_back(Block::current().thread().linear);
    Block::current().wait("an mbarrier", where);
  }
}

void Mbarriers::complete(uint32_t address, uint32_t bytes, const Clocks& clocks,
                         const Where& where) {
  const auto found = barriers_.find(address);
  if (found == barriers_.end()) fail(where, "a copy landed at an mbarrier that is no more");
  State& state = found->second;
  join(state.arriving, clocks);
  state.bytes -= bytes;
  // Bytes may come before they are expected, but then the phase cannot end on them.
  try_complete(state);
}

}  // namespace emulation
