// Ranks as threads of one process, exchanging bytes through shared slots.
//
// Each ordered pair of ranks has one slot. The sender puts a pointer to its bytes into it, the
// receiver copies them and empties the slot, and the sender waits for that:
//
//   empty --sender posts--> full --receiver copies--> empty
//
// So a byte is copied once, and a slot is empty when an exchange begins. A sender that gives up
// first empties its slots, so that no receiver reads freed bytes. One mutex guards all slots of all
// groups of a run; receivers copy without holding it. Each rank sleeps on its own condition
// variable, so only its own messages wake it.
#include <condition_variable>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "comm/common/communicator_base.hpp"
#include "comm/common/size_mismatch.hpp"
#include "comm/common/split_members.hpp"
#include "core/check.hpp"

namespace kvmesh {
namespace {

using Clock = std::chrono::steady_clock;

/// Thrown in a waiting rank when another rank's body has thrown. It never leaves run_loopback,
/// which rethrows the first error.
class PeerFailed : public Error {
 public:
  using Error::Error;
};

/// The state that the threads of one run_loopback share.
struct World {
  explicit World(int ranks) : wake(static_cast<std::size_t>(ranks)) {}

  std::mutex mutex;
  std::vector<std::condition_variable> wake;  // [rank of the run]
  std::exception_ptr first_error;             // guarded by mutex
  int failed_rank = -1;                       // guarded by mutex

  void fail(int rank, std::exception_ptr error) {
    const std::lock_guard lock(mutex);
    if (first_error) return;
    first_error = std::move(error);
    failed_rank = rank;
    for (std::condition_variable& each : wake) each.notify_all();
  }
};

struct Slot {
  std::span<const std::byte> bytes;
  bool full = false;
  bool being_copied = false;  // only while full
};

/// The state that the members of one communicator share. Guarded by the world's mutex.
struct Group {
  Group(std::shared_ptr<World> shared_world, std::vector<int> ranks)
      : world(std::move(shared_world)),
        world_ranks(std::move(ranks)),
        slots(world_ranks.size() * world_ranks.size()) {}

  Slot& slot(Rank from, Rank to) {
    return slots[static_cast<std::size_t>(from.value) * world_ranks.size() +
                 static_cast<std::size_t>(to.value)];
  }
  std::condition_variable& wake(Rank rank) {
    return world->wake[static_cast<std::size_t>(world_rank(rank))];
  }
  int world_rank(Rank rank) const { return world_ranks[static_cast<std::size_t>(rank.value)]; }

  struct Split {
    std::shared_ptr<Group> group;
    std::size_t still_to_come = 0;
  };

  std::shared_ptr<World> world;
  std::vector<int> world_ranks;  // [rank of the group]
  std::vector<Slot> slots;       // [from][to]
  // Groups that split is making, by (number of earlier splits, color). The first member to call
  // makes the group; the last one removes it from here.
  std::map<std::pair<int, int>, Split> splits;
};

class LoopbackCommunicator final : public CommunicatorBase {
 public:
  LoopbackCommunicator(std::shared_ptr<Group> group, Rank rank, std::chrono::milliseconds deadline)
      : CommunicatorBase(rank, static_cast<int>(group->world_ranks.size()), deadline),
        group_(std::move(group)) {}

  std::string_view kind() const override { return "loopback"; }

 private:
  std::unique_ptr<Communicator> make_part(int color, int key) override {
    const std::vector<Rank> members = split_members(*this, color, key);
    std::vector<int> world_ranks;
    Rank new_rank;
    for (Rank member : members) {
      if (member == rank()) new_rank.value = static_cast<std::int32_t>(world_ranks.size());
      world_ranks.push_back(group_->world_rank(member));
    }
    return std::make_unique<LoopbackCommunicator>(join(color, std::move(world_ranks)), new_rank,
                                                  deadline());
  }

  void exchange_with_others(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                            std::string_view operation) override {
    const Clock::time_point until = Clock::now() + deadline();
    std::unique_lock lock(group_->world->mutex);
    post(outgoing);
    receive(lock, incoming, until, operation);
    wait_until_taken(lock, outgoing, until, operation);
  }

  void post(std::span<const Outgoing> outgoing) {
    for (const Outgoing& out : outgoing) {
      if (out.to == rank() || out.bytes.empty()) continue;
      group_->slot(rank(), out.to) = {out.bytes, true, false};
      group_->wake(out.to).notify_one();
    }
  }

  /// Receives messages in the order of their arrival, and sleeps only if none has arrived.
  void receive(std::unique_lock<std::mutex>& lock, std::span<const Incoming> incoming,
               Clock::time_point until, std::string_view operation) {
    waiting_for_.clear();
    for (const Incoming& in : incoming) {
      if (in.from != rank() && !in.bytes.empty()) waiting_for_.push_back(in);
    }
    const auto take_if_there = [&](const Incoming& in) {
      if (!group_->slot(in.from, rank()).full) return false;
      take(lock, in, operation);
      return true;
    };
    while (true) {
      const std::size_t taken = std::erase_if(waiting_for_, take_if_there);
      if (waiting_for_.empty()) return;
      if (taken == 0) sleep(lock, until, operation, [&] { return not_received(); });
    }
  }

  void take(std::unique_lock<std::mutex>& lock, const Incoming& in, std::string_view operation) {
    Slot& slot = group_->slot(in.from, rank());
    if (slot.bytes.size() != in.bytes.size()) {
      throw SizeMismatch(
          {std::string(operation), rank(), in.bytes.size(), in.from, slot.bytes.size()});
    }
    slot.being_copied = true;
    lock.unlock();
    std::memcpy(in.bytes.data(), slot.bytes.data(), in.bytes.size());
    lock.lock();
    slot.full = slot.being_copied = false;
    group_->wake(in.from).notify_one();
  }

  void wait_until_taken(std::unique_lock<std::mutex>& lock, std::span<const Outgoing> outgoing,
                        Clock::time_point until, std::string_view operation) {
    const auto not_taken = [&] {
      std::vector<Rank> ranks;
      for (const Outgoing& out : outgoing) {
        if (out.to != rank() && group_->slot(rank(), out.to).full) ranks.push_back(out.to);
      }
      return ranks;
    };
    for (const Outgoing& out : outgoing) {
      if (out.to == rank()) continue;
      while (group_->slot(rank(), out.to).full) sleep(lock, until, operation, not_taken);
    }
  }

  /// Empties the slots of this rank. Waits for copies under way, which end on their own.
  void break_off(std::span<const Outgoing> outgoing) override {
    std::unique_lock lock(group_->world->mutex);
    for (const Outgoing& out : outgoing) {
      if (out.to == rank()) continue;
      Slot& slot = group_->slot(rank(), out.to);
      group_->wake(rank()).wait(lock, [&] { return !slot.being_copied; });
      slot.full = false;
    }
  }

  std::vector<Rank> not_received() const {
    std::vector<Rank> ranks;
    for (const Incoming& in : waiting_for_) ranks.push_back(in.from);
    return ranks;
  }

  /// Sleeps until another rank wakes this one. `late` returns the ranks that it waits for.
  template <class Late>
  void sleep(std::unique_lock<std::mutex>& lock, Clock::time_point until,
             std::string_view operation, const Late& late) {
    World& world = *group_->world;
    if (world.failed_rank < 0 && Clock::now() >= until) {
      throw Timeout(rank(), late(), std::string(operation), deadline());
    }
    if (world.failed_rank < 0) group_->wake(rank()).wait_until(lock, until);
    if (world.failed_rank >= 0) {
      throw PeerFailed(fmt::format("{}: rank {} stopped waiting, because rank {} of the run failed",
                                   operation, rank().value, world.failed_rank));
    }
  }

  std::shared_ptr<Group> join(int color, std::vector<int> world_ranks) {
    const std::lock_guard lock(group_->world->mutex);
    const auto [entry, is_new] = group_->splits.try_emplace({splits_++, color});
    Group::Split& split = entry->second;
    if (is_new) {
      split.still_to_come = world_ranks.size();
      split.group = std::make_shared<Group>(group_->world, std::move(world_ranks));
    }
    const std::shared_ptr<Group> group = split.group;
    if (--split.still_to_come == 0) group_->splits.erase(entry);
    return group;
  }

  std::shared_ptr<Group> group_;
  std::vector<Incoming> waiting_for_;
  int splits_ = 0;
};

std::shared_ptr<Group> make_group(int ranks) {
  std::vector<int> world_ranks;
  for (int rank = 0; rank < ranks; ++rank) world_ranks.push_back(rank);
  return std::make_shared<Group>(std::make_shared<World>(ranks), std::move(world_ranks));
}

}  // namespace

std::unique_ptr<Communicator> make_single_communicator() {
  return std::make_unique<LoopbackCommunicator>(make_group(1), Rank{0}, std::chrono::seconds(60));
}

void run_loopback(int ranks, const std::function<void(Communicator&)>& body,
                  std::chrono::milliseconds deadline) {
  require(ranks > 0 && ranks <= PageId::kMaxRanks, "run_loopback: {} ranks, want 1 to {}", ranks,
          PageId::kMaxRanks);
  const std::shared_ptr<Group> group = make_group(ranks);
  const auto run_rank = [&](int rank) {
    try {
      LoopbackCommunicator comm(group, Rank{rank}, deadline);
      body(comm);
    } catch (...) {
      group->world->fail(rank, std::current_exception());
    }
  };
  {
    std::vector<std::jthread> threads;
    threads.reserve(static_cast<std::size_t>(ranks));
    try {
      for (int rank = 0; rank < ranks; ++rank) threads.emplace_back(run_rank, rank);
    } catch (const std::system_error& error) {
      const int started = static_cast<int>(threads.size());
      const OutOfThreads out_of_threads(ranks, started, error.what());
      group->world->fail(started, std::make_exception_ptr(out_of_threads));
    }
  }
  if (group->world->first_error) std::rethrow_exception(group->world->first_error);
}

}  // namespace kvmesh
