// Known prefixes of the C interface.
#include <algorithm>
#include <optional>
#include <span>
#include <vector>

#include "runtime/c/guard.hpp"
#include "runtime/c/handles.hpp"

using namespace kvmesh;
using namespace kvmesh::c;

namespace {

PrefixExtras extras_of(const kvmesh_prefix_extras_t* given) {
  const kvmesh_prefix_extras_t known_extras = known(given);
  PrefixExtras extras;
  extras.salt = text_or_empty(known_extras.salt);
  if (known_extras.adapter_name != nullptr) {
    extras.adapter = {.name = known_extras.adapter_name,
                      .path = text_or_empty(known_extras.adapter_path)};
  }
  require(known_extras.item_count == 0 || known_extras.items != nullptr, "items is NULL");
  for (const auto& item : std::span(known_extras.items, known_extras.item_count)) {
    extras.items.push_back({text_or_empty(item.id), item.first, item.tokens});
  }
  const std::size_t pages = known_extras.prompt_embeds_count;
  require(pages == 0 || known_extras.prompt_embeds != nullptr, "prompt_embeds is NULL");
  extras.prompt_embeds.resize(pages);
  for (std::size_t i = 0; i < pages; ++i) {
    auto& to = extras.prompt_embeds[i];
    std::copy_n(known_extras.prompt_embeds + i * to.size(), to.size(), to.begin());
  }
  return extras;
}

kvmesh_status_t find(kvmesh_cache_t* cache, const kvmesh_prefix_key_t* key,
                     std::optional<Stream> after, kvmesh_prefix_match_t* match) {
  return guarded([&] {
    kvmesh_prefix_match_t& made = checked(match, "match");
    const PrefixMatch found =
        checked(cache, "cache").cache.match_prefix(checked(key, "key").key, after);
    made = {.pin = found.pin.value, .tokens = found.tokens};
  });
}

PrefixMatch match_of(const kvmesh_prefix_match_t* match) {
  return {SequenceId(checked(match, "match").pin), match->tokens};
}

}  // namespace

kvmesh_status_t kvmesh_prefix_key_create(const kvmesh_cache_t* cache,
                                         const kvmesh_prefix_extras_t* extras,
                                         kvmesh_prefix_key_t** key) {
  return guarded([&] {
    kvmesh_prefix_key_t*& made = checked(key, "key");
    const KvCache& of = checked(cache, "cache").cache;
    made = new kvmesh_prefix_key{of.make_prefix_key(extras_of(extras))};
  });
}

void kvmesh_prefix_key_destroy(kvmesh_prefix_key_t* key) { delete key; }

kvmesh_status_t kvmesh_prefix_key_append(kvmesh_prefix_key_t* key, const int32_t* tokens,
                                         size_t count) {
  return guarded([&] {
    require(count == 0 || tokens != nullptr, "tokens is NULL");
    checked(key, "key").key.append(std::span(tokens, count));
  });
}

kvmesh_status_t kvmesh_prefix_key_truncate(kvmesh_prefix_key_t* key, int64_t length) {
  return guarded([&] { checked(key, "key").key.truncate(length); });
}

kvmesh_status_t kvmesh_prefix_match(kvmesh_cache_t* cache, const kvmesh_prefix_key_t* key,
                                    kvmesh_prefix_match_t* match) {
  return find(cache, key, {}, match);
}

kvmesh_status_t kvmesh_prefix_match_after(kvmesh_cache_t* cache, const kvmesh_prefix_key_t* key,
                                          void* stream, kvmesh_prefix_match_t* match) {
  return find(cache, key, Stream{stream}, match);
}

kvmesh_status_t kvmesh_prefix_match_now(kvmesh_cache_t* cache, const kvmesh_prefix_key_t* key,
                                        void* stream, kvmesh_prefix_match_t* match,
                                        int64_t* loading) {
  return guarded([&] {
    kvmesh_prefix_match_t& made = checked(match, "match");
    int64_t& coming = checked(loading, "loading");
    const PrefixMatch found =
        checked(cache, "cache").cache.match_prefix_now(checked(key, "key").key, Stream{stream});
    made = {.pin = found.pin.value, .tokens = found.tokens};
    coming = found.loading;
  });
}

kvmesh_status_t kvmesh_prefix_release(kvmesh_cache_t* cache, const kvmesh_prefix_match_t* match) {
  return guarded([&] { checked(cache, "cache").cache.release(match_of(match)); });
}

kvmesh_status_t kvmesh_sequence_create_of_match(kvmesh_cache_t* cache,
                                                const kvmesh_prefix_match_t* match,
                                                kvmesh_sequence_t* made) {
  return guarded([&] {
    kvmesh_sequence_t& to = checked(made, "made");
    to = checked(cache, "cache").cache.create_with_prefix(match_of(match)).value;
  });
}

kvmesh_status_t kvmesh_sequence_create_of_key(kvmesh_cache_t* cache, const kvmesh_prefix_key_t* key,
                                              kvmesh_sequence_t* made) {
  return guarded([&] {
    kvmesh_sequence_t& to = checked(made, "made");
    to = checked(cache, "cache").cache.create_with_prefix(checked(key, "key").key).value;
  });
}

kvmesh_status_t kvmesh_sequence_publish(kvmesh_cache_t* cache, kvmesh_sequence_t sequence,
                                        const kvmesh_prefix_key_t* key,
                                        const kvmesh_retention_t* retentions,
                                        size_t retention_count) {
  return guarded([&] {
    require(retention_count == 0 || retentions != nullptr, "retentions is NULL");
    std::vector<Retention> list;
    for (const kvmesh_retention_t& each : std::span(retentions, retention_count)) {
      list.push_back({each.first, each.tokens, each.priority, each.operations});
    }
    checked(cache, "cache").cache.publish(SequenceId(sequence), checked(key, "key").key, list);
  });
}
