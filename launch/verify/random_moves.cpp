#include "launch/verify/random_moves.hpp"

#include <thread>
#include <vector>

namespace kvmesh::verify {

void RandomMoves::between_steps() {
  if (moves_ == Moves::kNone || random_.one_in(4)) return;
  draw_leaving();
  const bool is_moving = call(random_.pick(std::vector<std::int64_t>{1, 3, 10, 1000}));
  const bool completes = moves_ == Moves::kBetween || random_.one_in(6);
  if (is_moving && completes) end();
}

void RandomMoves::draw_leaving() {
  if (!random_.one_in(3)) return;
  const std::int64_t last = cache_.cache().mesh().kv_parallel() - 1;
  const std::int64_t rank = random_.integer(0, last);
  leaving_ = PageRank{random_.coin() ? static_cast<std::int32_t>(rank) : -1};
}

bool RandomMoves::call(std::int64_t limit) {
  const MoveProgress now = cache_.rebalance_now({.limit = limit, .leaving = leaving_});
  moved_.all += now.moved;
  if (leaving_.value >= 0) moved_.with_leaving += now.moved;
  return now.moving > 0;
}

void RandomMoves::end() {
  if (moves_ == Moves::kNone) return;
  while (call(0)) std::this_thread::yield();
}

}  // namespace kvmesh::verify
