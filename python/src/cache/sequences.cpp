// The cache's operations on sequences, and those that move their pages.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include "python/src/bindings.hpp"

namespace kvmesh::python {
namespace {

/// Calls `move(cache)`, which other ranks may have to wait for.
template <class Move>
std::int64_t moved(PyCache& self, const Move& move) {
  const auto cache = self.use();
  const WithoutPythonsLock others_run;
  return move(*cache);
}

std::optional<Stream> stream_or_none(nb::handle stream, KvCache& cache) {
  if (stream.is_none()) return std::nullopt;
  return stream_of(stream, cache.mesh().device());
}

std::pair<std::int64_t, std::int64_t> rebalance_now(PyCache& self, std::int64_t limit,
                                                    std::optional<int> leaving, nb::handle after) {
  const auto cache = self.use();
  const std::optional<Stream> stream = stream_or_none(after, *cache);
  const WithoutPythonsLock others_run;
  const MoveProgress progress =
      cache->rebalance_now({.limit = limit, .leaving = PageRank{leaving.value_or(-1)}}, stream);
  return {progress.moved, progress.moving};
}

void bind_page_tables(nb::class_<PyCache>& type) {
  type.def(
          "create", [](PyCache& self) { return self.get().create().value; },
          "Makes an empty sequence and returns its id.")
      .def(
          "reserve",
          [](PyCache& self, std::uint64_t sequence, std::int64_t tokens, nb::handle after) {
            KvCache& cache = self.get();
            cache.reserve(SequenceId(sequence), tokens, stream_or_none(after, cache));
          },
          nb::arg("sequence"), nb::arg("tokens"), nb::arg("after") = nb::none(),
          "Gives the sequence pages for this many tokens. after: the stream of the steps. On a GPU "
          "pages that are evicted to tiers are copied beside the steps then, after the work on it; "
          "without it the call waits for the device where it evicts such pages.")
      .def(
          "fork",
          [](PyCache& self, std::uint64_t sequence) {
            return self.get().fork(SequenceId(sequence)).value;
          },
          nb::arg("sequence"), "Returns a sequence with the same content; pages are shared.")
      .def(
          "truncate",
          [](PyCache& self, std::uint64_t sequence, std::int64_t length) {
            self.get().truncate(SequenceId(sequence), length);
          },
          nb::arg("sequence"), nb::arg("length"))
      .def(
          "erase",
          [](PyCache& self, std::uint64_t sequence) { self.get().erase(SequenceId(sequence)); },
          nb::arg("sequence"))
      .def(
          "length",
          [](PyCache& self, std::uint64_t sequence) {
            return self.get().allocator().length(SequenceId(sequence));
          },
          nb::arg("sequence"))
      .def(
          "pages",
          [](PyCache& self, std::uint64_t sequence, int group) {
            std::vector<std::optional<std::pair<int, int>>> list;
            for (PageId page : self.get().allocator(group).pages(SequenceId(sequence))) {
              list.emplace_back();
              if (page.valid()) list.back().emplace(page.rank().value, page.index());
            }
            return list;
          },
          nb::arg("sequence"), nb::arg("group") = 0,
          "The page table in logical order: (rank, index) each; None for pages behind a window.");
}

void bind_movement(nb::class_<PyCache>& type) {
  type.def(
          "rebalance",
          [](PyCache& self, std::int64_t limit) {
            return moved(self, [=](KvCache& it) { return it.rebalance(limit); });
          },
          nb::arg("limit"),
          "Moves at most this many pages from fuller ranks to emptier ones, between two steps. "
          "Returns how many. Collective.")
      .def("rebalance_now", rebalance_now, nb::arg("limit") = 0, nb::kw_only(),
           nb::arg("leaving") = nb::none(), nb::arg("after") = nb::none(),
           "Moves pages while steps go on; call it between any two of them. At most `limit` pages "
           "move at once; `leaving` is a kv rank that is to be drained. On a GPU the copies run "
           "after the work on the stream `after`, which is that of the steps. Returns (moved, "
           "moving): the numbers of pages that have moved since the last call, and of those that "
           "are being moved. Collective.")
      .def(
          "resize",
          [](PyCache& self, int kv_rank, std::int64_t pages) {
            return moved(self, [=](KvCache& it) { return it.resize(PageRank{kv_rank}, pages); });
          },
          nb::arg("kv_rank"), nb::arg("pages"),
          "Gives a rank's pools another size; pages past it move. Returns how many. Collective.")
      .def(
          "drain",
          [](PyCache& self, int kv_rank) {
            return moved(self, [=](KvCache& it) { return it.drain(PageRank{kv_rank}); });
          },
          nb::arg("kv_rank"), "resize to no pages, until add_rank. Collective.")
      .def(
          "add_rank",
          [](PyCache& self, int kv_rank) {
            moved(self,
                  [=](KvCache& it) { return it.add_rank(PageRank{kv_rank}), std::int64_t{0}; });
          },
          nb::arg("kv_rank"), "Takes a drained rank back into use. Collective.")
      .def(
          "pool_pages",
          [](PyCache& self, int kv_rank, int group) {
            return self.get().allocator(group).pool_pages(PageRank{kv_rank});
          },
          nb::arg("kv_rank"), nb::arg("group") = 0);
}

void bind_sequence_state(nb::class_<PyCache>& type) {
  type.def(
      "sequence_state",
      [](nb::handle self, int layer, std::uint64_t sequence) {
        const TensorView view =
            nb::cast<PyCache&>(self).get().sequence_state(layer, SequenceId(sequence));
        if (view.empty()) return of_any_type(nb::none());
        const std::size_t shape[] = {static_cast<std::size_t>(view.shape[0])};
        const bool is_cpu = view.device.kind == DeviceKind::kCpu;
        return of_any_type(nb::cast(nb::ndarray<nb::array_api, float>(
            view.data, 1, shape, self, nullptr, nb::dtype<float>(),
            is_cpu ? nb::device::cpu::value : nb::device::cuda::value, view.device.index)));
      },
      nb::arg("layer"), nb::arg("sequence"),
      "A sequence's state in a layer with state_bytes: float32 words in place, for DLPack. "
      "None on kv ranks that do not hold it. May be written after a plan that appends; valid "
      "until the sequence is appended to, moved or erased, or the cache is closed.");
}

}  // namespace

void bind_sequences(nb::class_<PyCache>& type) {
  bind_page_tables(type);
  bind_movement(type);
  bind_sequence_state(type);
}

}  // namespace kvmesh::python
