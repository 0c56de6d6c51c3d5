// The race detector: who touched each byte of shared memory, and what has been ordered since.
//
// Warps have vector clocks, which barriers and mbarriers join; lanes of a warp share its clock,
// which also ticks at __syncwarp, so that two lanes at the same tick are unordered. The copy
// engine, which carries bulk copies, is an agent of its own. Clocks never go back, so what earlier
// blocks left in the records is in everybody's past and need not be cleared.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "emulation/error.h"
#include "emulation/options.h"

namespace emulation {

constexpr int kWarps = 32, kLanes = 32, kCopyEngine = kWarps, kAgents = kWarps + 1;

// What an agent knows of the others' time.
using Clocks = std::array<uint32_t, kAgents>;

void join(Clocks& into, const Clocks& other);

// Who makes an access: a thread, or the copy engine.
struct Accessor {
  int agent = 0, lane = 0;
  Where where = {};            // of a warp-wide or asynchronous instruction
  const void* code = nullptr;  // of a plain load or store
};

enum class Proxy : uint8_t { generic, async };

class Races {
 public:
  Races(size_t bytes, Report* report) : bytes_(bytes), report_(report) {}

  void start_block(int warps);

  void read(uint32_t address, size_t bytes, const Accessor& who, Proxy proxy = Proxy::generic);
  // An atomic's read and write: ordered behind plain writes, free among its like.
  void read_atomic(uint32_t address, size_t bytes, const Accessor& who);
  void write(uint32_t address, size_t bytes, const Accessor& who, Proxy proxy = Proxy::generic);
  // A copy that will land between now and `land`: whoever touches the bytes meanwhile races. What
  // cp.async brings is the thread's own write, which wgmma sees behind its fence.proxy.async alone.
  void write_begins(uint32_t address, size_t bytes, const Accessor& who);
  void write_lands(uint32_t address, size_t bytes, const Accessor& who, Proxy proxy);
  // A read by an instruction that was issued at `issued` and reads at its own time: nobody may have
  // written since.
  void read_late(uint32_t address, size_t bytes, const Accessor& who, uint32_t issued);
  uint32_t now() const { return sequence_; }

  // What a thread wrote before becomes visible to the asynchronous proxy (fence.proxy.async).
  void fence_async(int agent, int lane) { fenced_[agent * kLanes + lane] = ++sequence_; }

  const Clocks& clocks(int agent) const { return clocks_[agent]; }
  void acquire(int agent, const Clocks& other) { join(clocks_[agent], other), tick(agent); }
  void tick(int agent) { newest_ = std::max(newest_, ++clocks_[agent][agent]); }

 private:
  struct Write {
    uint32_t clock = 0, sequence = 0;
    uint8_t agent = 0, lane = 0;
    bool in_flight = false, generic = true;
  };
  static constexpr uint8_t kSeveral = kLanes;
  struct Read {
    uint32_t clock = 0;
    uint8_t lane = 0;
  };

  bool ordered(const Accessor& who, int agent, int lane, uint32_t clock) const;
  void check_write(uint32_t byte, const Accessor& who);
  void check_read(uint32_t byte, const Accessor& who, Proxy proxy);
  void report(const char* kind, uint32_t byte, const Accessor& who, int agent, int lane);
  std::string name(const Accessor& who) const;

  size_t bytes_;
  Report* report_;
  std::vector<Write> writes_;
  std::vector<Read> reads_;  // [byte][agent]
  std::array<Clocks, kAgents> clocks_{};
  std::array<uint32_t, kAgents * kLanes> fenced_{};
  uint32_t base_ = 0, newest_ = 0, sequence_ = 0;
  int agents_ = 0;
  std::map<std::string, size_t> reported_;
};

}  // namespace emulation
