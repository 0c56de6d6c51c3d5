#include "emulation/warp.h"

#include <bit>
#include <string>

#include "emulation/block.h"

namespace emulation {

Warp::Meeting& Warp::meeting(Collective operation, uint32_t mask, const Where& where) {
  for (Meeting& m : meetings_) {
    if ((m.mask & mask) == 0) continue;
    if (m.mask == mask && m.operation == operation && m.where.line() == where.line() &&
        describe(m.where) == describe(where)) {
      return m;
    }
    fail(where, "lanes of a warp diverge: others wait for this lane in another collective, at " +
                    describe(m.where));
  }
  return meetings_.emplace_back(Meeting{operation, mask, 0, where, {}});
}

void Warp::meet(Collective operation, uint32_t mask, void* argument, const Where& where) {
  Block& block = Block::current();
  const int lane = block.thread().lane;
  if ((mask >> lane & 1) == 0) {
    fail(where, "lane " + std::to_string(lane) + " is not in the mask that it gives");
  }
  if (lanes_ < kLanes && mask >> lanes_ != 0) {
    fail(where, "the mask names lanes that a warp of " + std::to_string(lanes_) + " lacks");
  }
  Meeting& m = meeting(operation, mask, where);
  m.arguments[lane] = argument;
  m.arrived |= 1u << lane;
  if (m.arrived != mask) return block.wait("the other lanes", where);
  const Meeting complete = m;
  meetings_.erase(meetings_.begin() + (&m - meetings_.data()));
  ++block.counters.collectives;
  operation(*this, mask, complete.arguments, where);
  for (int other = 0; other < kLanes; ++other) {
    if (other != lane && (mask >> other & 1)) block.wake(thread(other));
  }
  block.yield(where);
}

void sync_warp(Warp& warp, uint32_t, const Arguments&, const Where&) {
  Block::current().races.tick(warp.index());
}

void shuffle(Warp&, uint32_t mask, const Arguments& arguments, const Where& where) {
  std::array<uint32_t, kLanes> values{};
  for (int lane = 0; lane < kLanes; ++lane) {
    if (mask >> lane & 1) values[lane] = static_cast<Shuffle*>(arguments[lane])->value;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    auto& call = *static_cast<Shuffle*>(arguments[lane]);
    const int first = lane & ~(call.width - 1), end = first + call.width;
    int source = lane;
    switch (call.kind) {
      case Shuffle::indexed:
        source = first + (call.operand & (call.width - 1));
        break;
      case Shuffle::up:
        source = lane - call.operand < first ? lane : lane - call.operand;
        break;
      case Shuffle::down:
        source = lane + call.operand >= end ? lane : lane + call.operand;
        break;
      case Shuffle::exclusive_or:
        source = (lane ^ call.operand) >= end ? lane : lane ^ call.operand;
        break;
    }
    if ((mask >> source & 1) == 0) {
      fail(where, "lane " + std::to_string(lane) + " reads lane " + std::to_string(source) +
                      ", which is not in the mask");
    }
    call.value = values[source];
  }
}

void vote(Warp&, uint32_t mask, const Arguments& arguments, const Where&) {
  uint32_t ballot = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) && static_cast<Vote*>(arguments[lane])->predicate) ballot |= 1u << lane;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (mask >> lane & 1) static_cast<Vote*>(arguments[lane])->ballot = ballot;
  }
}

void reduce(Warp&, uint32_t mask, const Arguments& arguments, const Where&) {
  const auto call = [&](int lane) { return static_cast<Reduction*>(arguments[lane]); };
  const int first = std::countr_zero(mask);
  uint32_t total = call(first)->value;
  for (int lane = first + 1; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const uint32_t value = call(lane)->value;
    switch (call(first)->kind) {
      case Reduction::add:
        total += value;
        break;
      case Reduction::min:
        total = std::min(total, value);
        break;
      case Reduction::max:
        total = std::max(total, value);
        break;
      case Reduction::bit_and:
        total &= value;
        break;
      case Reduction::bit_or:
        total |= value;
        break;
      case Reduction::bit_xor:
        total ^= value;
        break;
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (mask >> lane & 1) call(lane)->value = total;
  }
}

}  // namespace emulation
