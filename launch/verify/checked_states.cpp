#include "launch/verify/checked_states.hpp"

#include "kvmesh/device_memory.hpp"

namespace kvmesh::verify {

void CheckedStates::step(std::span<const BatchEntry> batch, Random& random) {
  for (int layer = 0; layer < cache_.options().layers; ++layer) {
    if (cache_.group_options(cache_.group_of(layer)).state_bytes == 0) continue;
    for (const BatchEntry& entry : batch) {
      check(layer, entry.sequence);
      if (entry.append_tokens > 0) write(layer, entry.sequence, random);
    }
  }
}

void CheckedStates::fork(SequenceId sequence, SequenceId forked) {
  for (int layer = 0; layer < cache_.options().layers; ++layer) {
    if (const auto it = states_.find({sequence, layer}); it != states_.end())
      states_[{forked, layer}] = it->second;
  }
}

void CheckedStates::erase(SequenceId sequence) {
  std::erase_if(states_, [&](const auto& it) { return it.first.first == sequence; });
}

void CheckedStates::truncate(SequenceId sequence, std::int64_t length) {
  if (length == 0) erase(sequence);
}

CheckedStates::OfLayers CheckedStates::of(SequenceId sequence) const {
  OfLayers states;
  for (const auto& [place, state] : states_) {
    if (place.first == sequence) states[place.second] = state;
  }
  return states;
}

void CheckedStates::begin_with(SequenceId sequence, const OfLayers& states) {
  for (const auto& [layer, state] : states) states_[{sequence, layer}] = state;
}

void CheckedStates::check(int layer, SequenceId sequence) {
  const auto known = states_.find({sequence, layer});
  const TensorView here = cache_.sequence_state(layer, sequence);
  if (known == states_.end() || here.empty()) return;
  State found(static_cast<std::size_t>(here.shape[0]));
  copy_bytes(found.data(), here.data, found.size() * sizeof(float));
  if (found != known->second) findings_.fail("a sequence's state is not what was written");
}

void CheckedStates::write(int layer, SequenceId sequence, Random& random) {
  const std::int64_t bytes = cache_.group_options(cache_.group_of(layer)).state_bytes;
  State& state = states_[{sequence, layer}];
  state.resize(static_cast<std::size_t>(bytes / 4));
  for (float& number : state) number = random.real();
  const TensorView here = cache_.sequence_state(layer, sequence);
  if (!here.empty()) copy_bytes(here.data, state.data(), state.size() * sizeof(float));
}

}  // namespace kvmesh::verify
