#include "runtime/cache/side_moves.hpp"

#include <algorithm>
#include <utility>

#include "core/check.hpp"
#include "core/cuda/device_wait.hpp"

namespace kvmesh {

SideMoves::SideMoves(Mesh& mesh, std::deque<CacheGroup>& groups, const PoolStorage& pools,
                     const PeerPools& peers)
    : mesh_(mesh),
      groups_(groups),
      copies_(pools, peers, mesh.kv_comm(), mesh.membership(), mesh.device(),
              [this] { return groups_.front().make_move_stream(); }) {}

bool SideMoves::order(const RebalanceOptions& options) {
  moves_.clear();
  RebalanceOptions rest = options;
  for (CacheGroup& group : groups_) {
    moves_.push_back(group.allocator.start_rebalance_now(rest));
    rest.limit -= std::ssize(moves_.back());
  }
  if (rest.limit == options.limit) return false;
  phase_ = Phase::kWaiting;
  attempt_ = {};
  return true;
}

void SideMoves::start(std::optional<Stream> after, std::vector<TierJob> jobs) {
  jobs_ = std::move(jobs);
  copies_.prepare(moves_, after);
}

/// Starts the copies that are left, and returns whether this rank's part is done. Moves that were
/// given up have no failure.
bool SideMoves::is_done_here() {
  if (phase_ != Phase::kGivenUp)  // polls the device first: the jobs of a failed one never end
    return copies_.is_done() && std::ranges::all_of(jobs_, completed) && copies_.advance();
  try {
    return copies_.is_done();
  } catch (const Error&) {
    return true;  // a device that has failed copies no more
  }
}

/// [world rank]
std::vector<SideMoves::Standing> SideMoves::standings() {
  Standing mine = Standing::kUnderWay;
  attempt_([&] {
    if (is_done_here()) mine = Standing::kDone;
  });
  if (attempt_.failed()) mine = Standing::kFailed;
  try {
    return all_gather_value(mesh_.world(), mine, "move pages beside steps");
  } catch (const Error&) {
    attempt_.rethrow();
    throw;
  }
}

void SideMoves::proceed() {
  if (!is_under_way()) return;
  const std::vector<Standing> all = standings();
  const auto failed = std::ranges::find(all, Standing::kFailed);
  if (failed != all.end()) {
    const Attempt attempt = std::exchange(attempt_, {});
    give_up();
    attempt.rethrow();
    throw Error(fmt::format("move pages: rank {} could not copy; the moves are given up",
                            failed - all.begin()));
  }
  if (std::ranges::count(all, Standing::kDone) == std::ssize(all)) advance();
}

void SideMoves::advance() {
  switch (phase_) {
    case Phase::kNone:
      return;
    case Phase::kWaiting:
      return begin_copies();
    case Phase::kCopying:
      end_each([this](PageAllocator& it) { moved_ += it.finish_moves(); });
      break;
    case Phase::kGivenUp:
      if (holds_sources_) end_each([](PageAllocator& it) { it.cancel_moves(); });
      break;
  }
  phase_ = Phase::kNone;
  moves_.clear();
}

void SideMoves::begin_copies() {
  phase_ = Phase::kCopying;
  try {
    copies_.exchange("move pages beside steps");
  } catch (...) {
    attempt_.always([] { throw; });  // no later call must take these pages for copied
    throw;
  }
  attempt_([&] { static_cast<void>(copies_.advance()); });
}

template <class End>
void SideMoves::end_each(const End& end) {
  for (std::size_t g = 0; g < moves_.size(); ++g)
    if (!moves_[g].empty()) end(groups_[g].allocator);
}

std::int64_t SideMoves::pages_to_give_up(std::size_t group) const {
  if (!has_destinations()) return 0;
  const PageAllocator& allocator = groups_[group].allocator;
  const auto is_left = [&](const PageCopy& it) {
    return allocator.reference_count(it.source) == 0;
  };
  const std::vector<PageCopy>& moves = moves_[group];
  return std::ssize(moves) +
         (phase_ == Phase::kWaiting ? std::ranges::count_if(moves, is_left) : 0);
}

void SideMoves::give_up() {
  if (!has_destinations()) return;
  holds_sources_ = phase_ == Phase::kCopying;  // else no other rank reads them yet
  end_each([this](PageAllocator& it) {
    if (holds_sources_) return it.give_up_moves();
    it.cancel_moves();
  });
  copies_.give_up();
  phase_ = Phase::kGivenUp;
  attempt_ = {};
}

void SideMoves::complete() {
  Communicator& world = mesh_.world();
  while (is_under_way()) {
    // Other ranks wait in the exchange meanwhile, so this one takes half of their deadline.
    attempt_([&] {
      wait_until([this] { return is_done_here(); },
                 {world.rank(), world.deadline() / 2, "move pages beside steps"});
    });
    proceed();
  }
}

MoveProgress SideMoves::take_progress() {
  MoveProgress progress{.moved = std::exchange(moved_, 0)};
  for (const std::vector<PageCopy>& moves : moves_) progress.moving += std::ssize(moves);
  return progress;
}

void SideMoves::wait(const Communicator& world) {
  if (phase_ == Phase::kGivenUp) end(world);
}

void SideMoves::end(const Communicator& world) {
  wait_until([this] { return copies_.is_done(); },
             {world.rank(), world.deadline(), "move pages beside steps"});
}

}  // namespace kvmesh
