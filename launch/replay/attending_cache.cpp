#include "launch/replay/attending_cache.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "launch/replay/cpu_time.hpp"

namespace kvmesh::replay {
namespace {

CacheOptions cache_options(const ReplayOptions& options, const AttendShape& shape) {
  const AllocatorOptions pools = allocator_options(options);
  const std::int64_t host_pages = options.host_tier_tokens / options.page_size / options.ranks;
  return {.layers = shape.layers,
          .q_heads = shape.q_heads,
          .kv_heads = shape.kv_heads,
          .k_dim = shape.dim,
          .page_size = pools.page_size,
          .pages_per_rank = pools.pages_per_rank,
          .dtype = shape.dtype,
          .scales = {.kind = ScaleKind::kPerTensor},
          .placement = pools.placement,
          .home_threshold_tokens = pools.home_threshold_tokens,
          .prefix = pools.prefix,
          .tiers = {.host_bytes = host_pages * options.page_size * shape.token_bytes(),
                    .directory = options.tier_folder,
                    .model = "replay",
                    .file_bytes = options.file_tier_tokens * shape.token_bytes()}};
}

}  // namespace

AttendingCache::AttendingCache(Mesh& mesh, const Trace& trace, const ReplayOptions& options,
                               const AttendShape& shape, const Contents& contents,
                               std::int64_t every)
    : trace_(trace),
      shape_(shape),
      contents_(contents),
      every_(every),
      cache_(mesh, cache_options(options, shape)),
      mesh_(mesh),
      k_stage_(mesh),
      v_stage_(mesh),
      q_stage_(mesh),
      o_stage_(mesh),
      check_(contents, shape, verify::arithmetic_tolerances(mesh.device(), shape.dtype)),
      seeks_keys_(contents.query_scale() != 1),
      random_(2) {}

SequenceId AttendingCache::begin(const PrefixKey& key) {
  return timed(seconds_, [&] { return cache_.create_with_prefix(key); });
}

void AttendingCache::publish(SequenceId sequence, const PrefixKey& key) {
  timed(seconds_, [&] { cache_.publish(sequence, key); });
}

void AttendingCache::erase(SequenceId sequence) {
  timed(seconds_, [&] { cache_.erase(sequence); });
}

void AttendingCache::append(std::span<const Growth> batch) {
  entries_.clear();
  appended_.clear();
  for (const Growth& growth : batch) {
    entries_.push_back({growth.sequence, growth.count, std::min(growth.count, shape_.queries)});
    const std::vector<TokenRow> tokens = contents_.tokens_of(trace_, growth);
    appended_.insert(appended_.end(), tokens.begin(), tokens.end());
  }
  timed(seconds_, [&] {
    step_ ? cache_.replan(*step_, entries_) : static_cast<void>(step_ = cache_.plan(entries_));
  });
  const bool attends = every_ > 0 && ++batches_ % every_ == 0;
  if (attends) {
    ++checked_;
    sequences_.clear();
    for (const Growth& it : batch)
      sequences_.push_back(
          contents_.tokens_of(trace_, {it.sequence, it.request, 0, it.first + it.count}));
  }
  for (int layer = 0; layer < shape_.layers; ++layer) {
    const LayerInput input = keys_and_values(layer);
    if (attends) {
      run(layer, input, batch);
    } else {
      timed(seconds_, [&] { step_->append(layer, input.k, input.v); });
    }
  }
}

ConstTensorView AttendingCache::to_device(launch::DeviceStage& stage,
                                          const std::vector<std::byte>& numbers, std::int64_t rows,
                                          int heads) {
  return stage.put(ConstTensorView(numbers.data(), shape_.input(), {rows, heads, shape_.dim}));
}

LayerInput AttendingCache::keys_and_values(int layer) {
  k_.clear();
  v_.clear();
  for (const TokenRow token : appended_) {
    contents_.add_keys(token, layer, k_);
    contents_.add_values(token, layer, v_);
  }
  const std::int64_t tokens = std::ssize(appended_);
  return {.q = {},
          .k = to_device(k_stage_, k_, tokens, shape_.kv_heads),
          .v = to_device(v_stage_, v_, tokens, shape_.kv_heads)};
}

void AttendingCache::run(int layer, const LayerInput& input, std::span<const Growth> batch) {
  draw_queries(layer);
  q_.clear();
  for (const std::size_t row : queries_) contents_.add_query(row, q_);
  const std::int64_t tokens = step_->query_tokens();
  LayerInput all = input;
  all.q = to_device(q_stage_, q_, tokens, shape_.q_heads);
  o_.assign(queries_.size() * static_cast<std::size_t>(shape_.dim), std::nanf(""));
  const TensorView o = tensor(o_.data(), {tokens, shape_.q_heads, shape_.dim});
  o_stage_.put(o);  // the NaNs
  // A rank whose stages grow waits for GPUs: before the first kernel that waits for this rank.
  barrier(mesh_.kv_comm(), "replay");
  step_->run(layer, all, {.o = o_stage_.room_for(o)});
  o_stage_.fetch(o);
  compare(layer, batch);
}

void AttendingCache::draw_queries(int layer) {
  queries_.clear();
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const std::vector<TokenRow>& tokens = sequences_[i];
    const std::int64_t visible = std::ssize(tokens) - entries_[i].query_tokens;  // to all queries
    for (std::int64_t row = 0; row < entries_[i].query_tokens * shape_.q_heads; ++row) {
      if (!seeks_keys_) {
        queries_.push_back(static_cast<std::size_t>(random_.integer(0, Contents::kRows - 1)));
        continue;
      }
      const TokenRow sought = tokens[static_cast<std::size_t>(random_.integer(0, visible))];
      const auto head = static_cast<int>(row % shape_.q_heads);
      queries_.push_back(contents_.key_row(sought, layer, head / shape_.group()));
    }
  }
}

void AttendingCache::compare(int layer, std::span<const Growth> batch) {
  const auto dim = static_cast<std::size_t>(shape_.dim);
  std::int64_t token = -1;  // the last query of each sequence
  for (std::size_t i = 0; i < batch.size(); ++i) {
    token += entries_[i].query_tokens;
    const std::int64_t turn = (checked_ + static_cast<std::int64_t>(i)) % mesh_.size();
    if (turn != mesh_.rank().value) continue;
    for (int kv_head = 0; kv_head < shape_.kv_heads; ++kv_head) {
      const int head = kv_head * shape_.group() + static_cast<int>(checked_ % shape_.group());
      const auto row = static_cast<std::size_t>(token * shape_.q_heads + head);
      check_.compare({.tokens = sequences_[i],
                      .layer = layer,
                      .head = head,
                      .query = queries_[row],
                      .o = std::span(o_).subspan(row * dim, dim)},
                     [&] {
                       return fmt::format("request {} at token {}", batch[i].request,
                                          std::ssize(sequences_[i]) - 1);
                     });
    }
  }
}

}  // namespace kvmesh::replay
