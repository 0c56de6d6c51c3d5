#include "emulation/races.h"

#include <algorithm>

#include "emulation/symbols.h"

namespace emulation {

void join(Clocks& into, const Clocks& other) {
  for (int a = 0; a < kAgents; ++a) into[a] = std::max(into[a], other[a]);
}

std::string Race::text() const {
  return kind + " at shared byte " + std::to_string(address) + ": " + now + "; before: " + before +
         (count > 1 ? " (" + std::to_string(count) + " alike)" : "");
}

void Races::start_block(int warps) {
  if (writes_.empty()) writes_.resize(bytes_);
  if (agents_ != warps + 1) {
    agents_ = warps + 1;
    reads_.assign(bytes_ * agents_, {});
  }
  base_ = newest_;
  for (auto& clocks : clocks_) clocks.fill(base_);
  for (int agent = 0; agent < kAgents; ++agent) clocks_[agent][agent] = base_ + 1;
  newest_ = base_ + 1;
}

// Whether an access by `agent` at `clock` lies in the past of `who`.
bool Races::ordered(const Accessor& who, int agent, int lane, uint32_t clock) const {
  if (agent == who.agent) {
    return agent == kCopyEngine || lane == who.lane || clock < clocks_[agent][agent];
  }
  return clock <= clocks_[who.agent][agent];
}

void Races::check_read(uint32_t byte, const Accessor& who, Proxy proxy) {
  const Write& last = writes_[byte];
  if (last.in_flight) {
    report("read of a copy in flight", byte, who, last.agent, last.lane);
  } else if (last.clock <= base_) {
    report("read of what nobody wrote", byte, who, -1, 0);
  } else if (!ordered(who, last.agent, last.lane, last.clock)) {
    report("read after write", byte, who, last.agent, last.lane);
  } else if (proxy == Proxy::async && last.generic &&
             fenced_[last.agent * kLanes + last.lane] < last.sequence) {
    report("asynchronous read after a write without fence.proxy.async", byte, who, last.agent,
           last.lane);
  }
}

void Races::check_write(uint32_t byte, const Accessor& who) {
  const Write& last = writes_[byte];
  if (last.in_flight) {
    report("write over a copy in flight", byte, who, last.agent, last.lane);
  } else if (last.clock > base_ && !ordered(who, last.agent, last.lane, last.clock)) {
    report("write after write", byte, who, last.agent, last.lane);
  }
  const Read* reads = &reads_[static_cast<size_t>(byte) * agents_];
  for (int i = 0; i < agents_; ++i) {
    const int agent = i + 1 < agents_ ? i : kCopyEngine;
    if (reads[i].clock > base_ && !ordered(who, agent, reads[i].lane, reads[i].clock)) {
      report("write after read", byte, who, agent, reads[i].lane);
      return;
    }
  }
}

void Races::read(uint32_t address, size_t bytes, const Accessor& who, Proxy proxy) {
  const uint32_t clock = clocks_[who.agent][who.agent];
  const int column = who.agent == kCopyEngine ? agents_ - 1 : who.agent;
  for (uint32_t byte = address; byte < address + bytes; ++byte) {
    check_read(byte, who, proxy);
    Read& read = reads_[static_cast<size_t>(byte) * agents_ + column];
    const bool other = read.clock == clock && read.lane != who.lane;
    read = {clock, other ? kSeveral : static_cast<uint8_t>(who.lane)};
  }
}

void Races::read_atomic(uint32_t address, size_t bytes, const Accessor& who) {
  for (uint32_t byte = address; byte < address + bytes; ++byte)
    check_read(byte, who, Proxy::generic);
}

void Races::write(uint32_t address, size_t bytes, const Accessor& who, Proxy proxy) {
  for (uint32_t byte = address; byte < address + bytes; ++byte) check_write(byte, who);
  write_lands(address, bytes, who, proxy);
}

void Races::write_begins(uint32_t address, size_t bytes, const Accessor& who) {
  write(address, bytes, who, Proxy::async);
  for (uint32_t byte = address; byte < address + bytes; ++byte) writes_[byte].in_flight = true;
}

void Races::write_lands(uint32_t address, size_t bytes, const Accessor& who, Proxy proxy) {
  const uint32_t clock = clocks_[who.agent][who.agent];
  ++sequence_;
  for (uint32_t byte = address; byte < address + bytes; ++byte) {
    writes_[byte] = {clock,
                     sequence_,
                     static_cast<uint8_t>(who.agent),
                     static_cast<uint8_t>(who.lane),
                     false,
                     proxy == Proxy::generic};
  }
}

void Races::read_late(uint32_t address, size_t bytes, const Accessor& who, uint32_t issued) {
  for (uint32_t byte = address; byte < address + bytes; ++byte) {
    const Write& last = writes_[byte];
    if (last.sequence > issued) {
      report("write under an asynchronous read", byte, who, last.agent, last.lane);
      return;
    }
  }
  read(address, bytes, who, Proxy::async);
}

std::string Races::name(const Accessor& who) const {
  std::string text = who.agent == kCopyEngine ? "the copy engine"
                     : who.lane == kSeveral   ? "warp " + std::to_string(who.agent)
                                              : "warp " + std::to_string(who.agent) + " lane " +
                                                    std::to_string(who.lane);
  if (who.code != nullptr) return text + " in " + symbol_of(who.code);
  return who.where.line() > 0 ? text + " in " + describe(who.where) : text;
}

void Races::report(const char* kind, uint32_t byte, const Accessor& who, int agent, int lane) {
  // A kernel that lacks a barrier races a million times: one of each kind and place is enough.
  const std::string key =
      kind + std::to_string(reinterpret_cast<uintptr_t>(who.code)) + describe(who.where);
  const auto [found, fresh] = reported_.try_emplace(key, report_->races.size());
  if (!fresh) {
    ++report_->races[found->second].count;
    return;
  }
  report_->races.push_back({kind, name(who), agent < 0 ? "nobody" : name({agent, lane}), byte});
}

}  // namespace emulation
