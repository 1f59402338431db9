// Cross-attention: decoder steps attend to an encoder's keys, which are appended once.
#pragma once

#include "tests/contracts/on_each_placement.hpp"

namespace kvmesh::test {

/// Two inputs of an encoder, one with its own attention; then decoder steps, and beams, which are
/// forks. `decoder.plan` has the options of the decoder's plans but for masks and positions.
inline void cross_attend(CheckedCache& cache, StepOptions decoder = {}) {
  decoder.plan.mask = mods::no_mask();
  const SequenceId first = cache.create(), second = cache.create();
  EXPECT_TRUE(cache.step({{first, 37}, {second, 3, 0}}, {.plan = {.mask = mods::no_mask()}}));
  const std::int64_t free_pages = cache.allocator().free_pages();
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(cache.step({{second, 0, 1}, {first, 0, 1}}, decoder));
  const SequenceId beam = cache.fork(first);
  EXPECT_TRUE(cache.step({{beam, 0, 1}, {first, 0, 2}, {second, 0, 1}}, decoder));
  cache.erase(first);
  EXPECT_TRUE(cache.step({{second, 0, 2}, {beam, 0, 1}}, decoder));
  // The decoder's prompt is longer than the encoder's input: its queries need positions.
  decoder.plan.q_positions.assign(6, 0);
  EXPECT_TRUE(cache.step({{second, 0, 5}, {beam, 0, 1}}, decoder));
  EXPECT_EQ(cache.allocator().length(beam), 37);
  EXPECT_EQ(cache.allocator().free_pages(), free_pages) << "no step took or copied a page";
}

}  // namespace kvmesh::test
