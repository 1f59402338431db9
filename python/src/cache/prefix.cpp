// The prefix cache: keys of requests, and pages of known prefixes for new sequences.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <utility>
#include <variant>

#include "python/src/bindings.hpp"

namespace kvmesh::python {
namespace {

using Adapter = std::pair<std::string, std::string>;
using Item = std::tuple<std::string, std::int64_t, std::int64_t>;
using Retained = std::vector<std::int64_t>;

PrefixExtras extras_of(const std::string& salt, const std::optional<Adapter>& adapter,
                       const std::vector<Item>& items, const std::vector<nb::bytes>& embeds) {
  PrefixExtras extras;
  extras.salt = salt;
  if (adapter) extras.adapter = {.name = adapter->first, .path = adapter->second};
  for (const auto& [id, first, tokens] : items) extras.items.push_back({id, first, tokens});
  for (const nb::bytes& hash : embeds) {
    auto& to = extras.prompt_embeds.emplace_back();
    if (hash.size() != to.size())
      throw InvalidArgument("prompt_embeds: a hash of " + std::to_string(hash.size()) +
                            " bytes; SHA-256 has 32");
    std::copy_n(static_cast<const std::uint8_t*>(hash.data()), to.size(), to.begin());
  }
  return extras;
}

nb::typed<nb::list, nb::bytes> hashes(const PrefixKey& key) {
  nb::typed<nb::list, nb::bytes> list;
  for (const PageHash& hash : key.hashes()) {
    list.append(nb::bytes(reinterpret_cast<const char*>(hash.bytes.data()), hash.bytes.size()));
  }
  return list;
}

/// `after`: a stream, or None, after which pages come back.
template <PrefixMatch (KvCache::*Match)(const PrefixKey&, std::optional<Stream>)>
PrefixMatch match_by(PyCache& self, const PrefixKey& key, nb::handle after) {
  const auto cache = self.use();
  std::optional<Stream> stream;
  if (!after.is_none()) stream = stream_of(after, cache->mesh().device());
  const WithoutPythonsLock others_run;  // with a file tier it waits for other ranks
  return ((*cache).*Match)(key, stream);
}
constexpr auto match_prefix = match_by<&KvCache::match_prefix>;
constexpr auto match_prefix_now = match_by<&KvCache::match_prefix_now>;

std::uint64_t create_with_prefix(PyCache& self, const std::variant<PrefixKey*, PrefixMatch*>& of,
                                 nb::handle after) {
  const auto* const key = std::get_if<PrefixKey*>(&of);
  const PrefixMatch match =
      key != nullptr ? match_prefix(self, **key, after) : *std::get<PrefixMatch*>(of);
  return self.get().create_with_prefix(match).value;
}

void publish(PyCache& self, std::uint64_t sequence, const PrefixKey& key,
             const std::vector<Retained>& retentions) {
  std::vector<Retention> list;
  for (const Retained& each : retentions) {
    if (each.size() < 3 || each.size() > 4)
      throw nb::type_error("a retention is (first, tokens, priority[, operations])");
    if (each[2] < 0 || each[2] > 100)
      throw InvalidArgument("a priority is 0 to 100, not " + std::to_string(each[2]));
    list.push_back({each[0], each[1], static_cast<int>(each[2]), each.size() == 4 ? each[3] : 0});
  }
  self.get().publish(SequenceId(sequence), key, list);
}

/// @throws InvalidArgument for a text that names none of them.
template <class Choice, std::size_t N>
Choice choice(const char* what, std::string_view text, const Choice (&choices)[N]) {
  std::string names;
  for (const Choice each : choices) {
    if (name(each) == text) return each;
    names += (names.empty() ? "" : ", ") + std::string(name(each));
  }
  throw InvalidArgument(std::string(what) + " '" + std::string(text) + "' is none of " + names);
}

nb::dict dict_of(const TierCounts& counts) {
  nb::dict dict;
  dict["pages"] = counts.pages;
  dict["stores"] = counts.stores;
  dict["loads"] = counts.loads;
  dict["drops"] = counts.drops;
  dict["removed"] = counts.removed;
  return dict;
}

nb::dict dict_of(const TierStatistics& tiers) {
  nb::dict dict, faults;
  dict["pages_back"] = tiers.pages_back;
  dict["host"] = dict_of(tiers.host);
  dict["file"] = dict_of(tiers.file);
  faults["corrupt"] = tiers.faults.corrupt;
  faults["truncated"] = tiers.faults.truncated;
  faults["foreign"] = tiers.faults.foreign;
  faults["full"] = tiers.faults.full;
  faults["denied"] = tiers.faults.denied;
  faults["io"] = tiers.faults.io;
  dict["faults"] = faults;
  return dict;
}

}  // namespace

PrefixOptions prefix_options(bool enabled, std::string_view hash, std::string_view eviction,
                             std::string seed) {
  PrefixOptions options{.enabled = enabled, .seed = std::move(seed)};
  options.hash = choice("prefix_hash", hash, kAllPrefixHashes);
  options.eviction = choice("eviction", eviction, kAllEvictions);
  return options;
}

void bind_prefix(nb::module_& module, nb::class_<PyCache>& cache) {
  nb::class_<PrefixKey>(module, "PrefixKey",
                        "The tokens of one request, and the hashes of their full pages.")
      .def(
          "append",
          [](PrefixKey& self, const std::vector<std::int32_t>& tokens) {
            PrefixKey longer = self;  // which other threads do not see
            {
              const WithoutPythonsLock others_run;
              longer.append(tokens);
            }
            self = std::move(longer);
          },
          nb::arg("tokens"))
      .def("truncate", &PrefixKey::truncate, nb::arg("length"))
      .def("__len__", [](const PrefixKey& self) { return self.tokens().size(); })
      .def_prop_ro("hashes", &hashes, "The hash of each full page, as bytes.")
      .def("__repr__", [](const PrefixKey& self) {
        return "<kvmesh.PrefixKey: " + std::to_string(self.tokens().size()) + " tokens, " +
               std::to_string(self.hashes().size()) + " full pages>";
      });
  nb::class_<PrefixMatch>(module, "PrefixMatch",
                          "A run of cached pages, pinned until create_with_prefix or release.")
      .def_ro("tokens", &PrefixMatch::tokens)
      .def_ro("loading", &PrefixMatch::loading,
              "The tokens behind it that are on their way: see match_prefix_now.")
      .def("__repr__", [](const PrefixMatch& self) {
        return "<kvmesh.PrefixMatch: " + std::to_string(self.tokens) + " tokens, " +
               std::to_string(self.loading) + " on their way>";
      });
  cache
      .def(
          "make_prefix_key",
          [](PyCache& self, const std::string& salt, const std::optional<Adapter>& adapter,
             const std::vector<Item>& items, const std::vector<nb::bytes>& prompt_embeds) {
            return self.get().make_prefix_key(extras_of(salt, adapter, items, prompt_embeds));
          },
          nb::kw_only(), nb::arg("salt") = "", nb::arg("adapter") = nb::none(),
          nb::arg("items") = std::vector<Item>{},
          nb::arg("prompt_embeds") = std::vector<nb::bytes>{},
          "adapter: (name, path) of a LoRA. items: (id, first token, tokens) of other modalities. "
          "prompt_embeds: the SHA-256 of each page's embeddings, as bytes, from the first page on.")
      .def("match_prefix", match_prefix, nb::arg("key"), nb::kw_only(),
           nb::arg("after") = nb::none(),
           "Returns the longest cached run of the key's tokens. after: the stream of the steps. "
           "On a GPU pages then come back from tiers beside the steps, after the work on that "
           "stream, which must come after all work that uses the cache's pages; without it the "
           "call waits for the device.")
      .def(
          "match_prefix_now", match_prefix_now, nb::arg("key"), nb::kw_only(),
          nb::arg("after") = nb::none(),
          "As match_prefix, but waits for no file: starts to read the key's pages from files, and "
          "returns the run that device and host tiers have now. While the match's `loading` is not "
          "0, a later call for the key may find more: release the match, and call it again.")
      .def("create_with_prefix", &create_with_prefix, nb::arg("prefix"), nb::kw_only(),
           nb::arg("after") = nb::none(),
           "Returns a sequence that has the cached tokens of a key, or of a match, which it ends. "
           "after: of a key, as in match_prefix.")
      .def(
          "release", [](PyCache& self, const PrefixMatch& match) { self.get().release(match); },
          nb::arg("match"))
      .def("publish", &publish, nb::arg("sequence"), nb::arg("key"),
           nb::arg("retentions") = std::vector<Retained>{},
           "Lets later requests find the sequence's full pages. retentions: (first, tokens, "
           "priority[, operations]) each.")
      .def(
          "flush_tiers",
          [](PyCache& self) {
            const auto of = self.use();
            const WithoutPythonsLock others_run;
            of->flush_tiers();
          },
          "Stores this rank's published pages in files, and waits until they are there.")
      .def(
          "tier_statistics", [](PyCache& self) { return dict_of(self.get().tier_statistics()); },
          "Returns how many pages this rank's tiers have stored and loaded, and why pages of files "
          "were no hits.");
}

}  // namespace kvmesh::python
