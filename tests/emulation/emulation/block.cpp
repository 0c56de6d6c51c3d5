#include "emulation/block.h"

#include <string>
#include <utility>

#include "emulation/symbols.h"

namespace emulation {
namespace {

void check_barrier(int id, const Where& where) {
  if (id < 0 || id > 15) {
    fail(where, "a block has barriers 0 to 15, not " + std::to_string(id));
  }
}

}  // namespace

thread_local Block* Block::current_ = nullptr;

Block::Block(const Options& options, Report* report, const Dependency& dependency, Lines* written)
    : options(options),
      counters(report->counters),
      races(SharedMemory::kBytes, report),
      random_state_(options.seed * 0x9e3779b97f4a7c15 + 1),
      dependency_(dependency),
      written_(written) {}

uint64_t Block::random() {
  random_state_ ^= random_state_ << 13, random_state_ ^= random_state_ >> 7;
  return random_state_ ^= random_state_ << 17;
}

void Block::run(dim3 grid_, dim3 shape_, uint3 index_, size_t shared_bytes,
                const std::function<void()>& body) {
  grid = grid_, shape = shape_, index = index_;
  body_ = &body, error_ = nullptr, live_ = static_cast<int>(shape.size());
  if (live_ < 1 || live_ > kWarps * kLanes) {
    throw Error("a block has 1 to 1024 threads, not " + std::to_string(live_));
  }
  const int warps = (live_ + kLanes - 1) / kLanes;
  while (static_cast<int>(threads_.size()) < live_) {
    threads_.push_back(std::make_unique<Thread>(&Block::enter));
  }
  shared.start_block(shared_bytes, options.poison);
  races.start_block(warps);
  mbarriers.clear(), tensor_copies.clear(), barriers_.clear(), ready_.clear();
  warps_.clear(), waits_.clear();
  for (int w = 0; w < warps; ++w) warps_.emplace_back(w, std::min(kLanes, live_ - w * kLanes));
  for (int i = 0; i < live_; ++i) {
    Thread& thread = *threads_[i];
    const auto n = static_cast<unsigned>(i);
    thread.index = {n % shape.x, n / shape.x % shape.y, n / (shape.x * shape.y)};
    thread.linear = i, thread.warp = i / kLanes, thread.lane = i % kLanes;
    thread.finished = false, thread.waiting = nullptr, thread.copies = {};
    thread.waited = !dependency_.early;
    thread.fiber.restart();
    wake(i);
  }
  current_ = this;
  go_on();
  current_ = nullptr;
  if (error_) std::rethrow_exception(error_);
  check_end();
}

void Block::check_end() {
  if (live_ > 0) {
    std::string text = "deadlock: " + std::to_string(live_) + " threads wait for ever:";
    std::string last;
    for (size_t i = 0; i < shape.size(); ++i) {
      const Thread& thread = *threads_[i];
      if (thread.finished) continue;
      std::string place = std::string(" ") + thread.waiting + " at " + describe(thread.where);
      if (place != last) text += " thread " + std::to_string(i) + place + ";";
      last = std::move(place);
    }
    if (live_ < static_cast<int>(shape.size())) text += " the others have ended";
    throw Error(text);
  }
  for (size_t i = 0; i < shape.size(); ++i) threads_[i]->copies.check_end();
  for (Warp& warp : warps_) warp.group.check_end();
  if (dependency_.early && waits_.empty()) {
    throw Error(
        "a block ended without griddepcontrol.wait: what follows it takes the end of this "
        "kernel for the end of all before");
  }
  if (!tensor_copies.land_all()) throw Error("the block ended before its bulk copies landed");
  for (const auto& [id, barrier] : barriers_) {
    if (barrier.arrived > 0) {
      throw Error("the block ended with barrier " + std::to_string(id) + " half arrived at (" +
                  describe(barrier.where) + ")");
    }
  }
}

void Block::enter() {
  Block& block = *current_;
  try {
    (*block.body_)();
  } catch (...) {
    block.error_ = std::current_exception();
  }
  block.running_->finished = true;
  --block.live_;
  block.go_on();
}

// Leaves whoever runs; after an error, or when nobody can go on, for the caller of run().
void Block::go_on() {
  Thread* from = running_;
  running_ = error_ ? nullptr : next();
  if (running_ == from) return;
  ++counters.switches;
  Fiber::switch_between(from != nullptr ? from->fiber : main_,
                        running_ != nullptr ? running_->fiber : main_);
}

Thread* Block::next() {
  // Copies land as late as they may: when nobody can go on without. What is in flight when the last
  // thread ends has been left behind.
  const bool at_random = options.order == Order::random;
  while (live_ > 0 && tensor_copies.any() &&
         (ready_.empty() || (at_random && random() % 64 == 0))) {
    tensor_copies.land(at_random ? random() : 0);
  }
  if (ready_.empty()) return nullptr;
  int linear;
  if (options.order == Order::last_in) {
    linear = ready_.back(), ready_.pop_back();
  } else {
    if (at_random) std::swap(ready_.front(), ready_[random() % ready_.size()]);
    linear = ready_.front(), ready_.pop_front();
  }
  return threads_[linear].get();
}

void Block::wait(const char* what, const Where& where) {
  running_->waiting = what, running_->where = where;
  go_on();
}

void Block::yield(const Where& where) {
  if (options.order == Order::first_in) return;
  wake(running_->linear);
  wait("its turn", where);
}

// --- the kernels before ------------------------------------------------------------------------

void Block::griddepcontrol_wait() {
  running_->waited = true;
  waits_.try_emplace(running_->warp, races.clocks(running_->warp)[running_->warp]);
}

// Whether this thread has waited, or has been told by one that has.
bool Block::knows_of_wait() {
  if (running_->waited) return true;
  const Clocks& known = races.clocks(running_->warp);
  for (const auto& [warp, clock] : waits_) {
    // Lanes of a warp share its clock, which goes on when they synchronise.
    if (known[warp] > clock || (warp != running_->warp && known[warp] == clock)) {
      return running_->waited = true;
    }
  }
  return false;
}

// Memory of the emulator's, where a kernel's memory may have been.
bool Block::own(const void* pointer) const {
  const auto within = [&](const void* begin, size_t bytes) {
    return static_cast<size_t>(static_cast<const char*>(pointer) -
                               static_cast<const char*>(begin)) < bytes;
  };
  // A module that is loaded later has the variables of each OS thread on the heap, current_ too.
  if (within(&current_, sizeof(current_)) || within(this, sizeof(*this)) ||
      within(warps_.data(), warps_.size() * sizeof(Warp)) ||
      within(threads_.data(), threads_.size() * sizeof(threads_[0]))) {
    return true;
  }
  for (const auto& thread : threads_) {
    if (within(thread.get(), sizeof(Thread)) || thread->fiber.holds(pointer)) return true;
  }
  return false;
}

void Block::read_global(const void* pointer, size_t bytes, const Accessor& who) {
  if (running_->waited || dependency_.stream == nullptr) return;
  if (!dependency_.stream->unfinished.any_of(pointer, bytes) || knows_of_wait()) return;
  if (own(pointer)) return;
  fail_later(Error((who.code != nullptr ? symbol_of(who.code) : describe(who.where)) +
                   ": a read, before griddepcontrol.wait, of what a kernel before wrote"));
}

void Block::write_global(const void* pointer, size_t bytes, const Accessor& who) {
  if (dependency_.stream == nullptr || running_->fiber.holds(pointer)) return;
  if (!knows_of_wait() && !own(pointer)) {
    fail_later(Error((who.code != nullptr ? symbol_of(who.code) : describe(who.where)) +
                     ": a write to global memory before griddepcontrol.wait"));
  }
  written_->add(pointer, bytes);
}

// --- barriers ----------------------------------------------------------------------------------

bool Block::arrive(Barrier& barrier, int threads, const Where& where) {
  const int all = static_cast<int>(shape.size());
  const int expected = threads == 0 ? all : threads;
  if (threads % kLanes != 0 || threads > all) {
    fail(where, "a barrier takes a multiple of 32 threads of the block's " + std::to_string(all) +
                    ", not " + std::to_string(threads));
  }
  if (barrier.arrived == 0) barrier.expected = expected, barrier.where = where, barrier.clocks = {};
  if (barrier.expected != expected) {
    fail(where, "a barrier of " + std::to_string(expected) + " threads where " +
                    describe(barrier.where) + " expects " + std::to_string(barrier.expected));
  }
  join(barrier.clocks, races.clocks(running_->warp));
  return ++barrier.arrived == expected;
}

void Block::barrier_sync(int id, int threads, const Where& where) {
  check_barrier(id, where);
  Barrier& barrier = barriers_[id];
  barrier.waiting.push_back(running_->linear);
  if (arrive(barrier, threads, where)) {
    release(barrier);
    yield(where);
  } else {
    wait("a barrier", where);
  }
}

void Block::barrier_arrive(int id, int threads, const Where& where) {
  check_barrier(id, where);
  if (threads == 0) fail(where, "bar.arrive names how many threads the barrier takes");
  Barrier& barrier = barriers_[id];
  const bool last = arrive(barrier, threads, where);
  races.tick(running_->warp);  // what follows is not ordered by this arrival
  if (last) release(barrier);
}

void Block::release(Barrier& barrier) {
  ++counters.barriers;
  uint64_t warps = 0;
  for (int linear : barrier.waiting) warps |= uint64_t{1} << (linear / kLanes);
  for (int warp = 0; warp < kWarps; ++warp) {
    if (warps >> warp & 1) races.acquire(warp, barrier.clocks);
  }
  for (int linear : barrier.waiting) {
    if (linear != running_->linear) wake(linear);
  }
  barrier.waiting.clear();
  barrier.arrived = 0;
}

}  // namespace emulation
