// The page allocator and block masks. A sequence is an int in Python, a page a pair (rank, index).
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include "python/src/bindings.hpp"

namespace kvmesh::python {
namespace {

std::vector<std::pair<int, int>> page_list(std::span<const PageId> pages) {
  std::vector<std::pair<int, int>> list;
  for (PageId page : pages) list.emplace_back(page.rank().value, page.index());
  return list;
}

void bind_constructor(nb::class_<PageAllocator>& type) {
  type.def(
      "__init__",
      [](PageAllocator* self, int ranks, std::int64_t pages_per_rank, int page_size,
         std::string_view placement, std::int64_t home) {
        new (self) PageAllocator({.ranks = ranks,
                                  .pages_per_rank = pages_per_rank,
                                  .page_size = page_size,
                                  .placement = placement_from(placement),
                                  .home_threshold_tokens = home});
      },
      nb::kw_only(), nb::arg("ranks"), nb::arg("pages_per_rank"), nb::arg("page_size") = 16,
      nb::arg("placement") = "balanced", nb::arg("home_threshold_tokens") = 2048);
}

void bind_operations(nb::class_<PageAllocator>& type) {
  type.def("create", [](PageAllocator& self) { return self.create().value; })
      .def(
          "reserve",
          [](PageAllocator& self, std::uint64_t sequence, std::int64_t tokens) {
            self.reserve(SequenceId(sequence), tokens);
          },
          nb::arg("sequence"), nb::arg("tokens"))
      .def(
          "append",
          [](PageAllocator& self, std::uint64_t sequence, std::int64_t tokens) {
            std::vector<std::vector<std::pair<int, int>>> copies;
            for (const PageCopy& copy : self.append(SequenceId(sequence), tokens)) {
              copies.push_back(page_list(std::array{copy.source, copy.destination}));
            }
            return copies;
          },
          nb::arg("sequence"), nb::arg("tokens"),
          "Returns the pages to copy before anything is written: [source, destination] each.")
      .def(
          "fork",
          [](PageAllocator& self, std::uint64_t sequence) {
            return self.fork(SequenceId(sequence)).value;
          },
          nb::arg("sequence"))
      .def(
          "truncate",
          [](PageAllocator& self, std::uint64_t sequence, std::int64_t length) {
            self.truncate(SequenceId(sequence), length);
          },
          nb::arg("sequence"), nb::arg("length"))
      .def(
          "erase",
          [](PageAllocator& self, std::uint64_t sequence) { self.erase(SequenceId(sequence)); },
          nb::arg("sequence"));
}

void bind_reads(nb::class_<PageAllocator>& type) {
  type.def(
          "length",
          [](const PageAllocator& self, std::uint64_t sequence) {
            return self.length(SequenceId(sequence));
          },
          nb::arg("sequence"))
      .def(
          "pages",
          [](const PageAllocator& self, std::uint64_t sequence) {
            return page_list(self.pages(SequenceId(sequence)));
          },
          nb::arg("sequence"), "The page table in logical order: (rank, index) each.")
      .def("free_pages", [](const PageAllocator& self) { return self.free_pages(); })
      .def(
          "free_pages",
          [](const PageAllocator& self, int rank) { return self.free_pages(PageRank{rank}); },
          nb::arg("rank"))
      .def_prop_ro("sequences", &PageAllocator::sequences)
      .def_prop_ro("digest", &PageAllocator::digest)
      .def("__repr__", [](const PageAllocator& self) {
        const AllocatorOptions& options = self.options();
        return "<kvmesh.PageAllocator: " + std::to_string(self.sequences()) + " sequences, " +
               std::to_string(self.free_pages()) + " of " +
               std::to_string(options.pages_per_rank * options.ranks) + " pages of " +
               std::to_string(options.page_size) + " tokens free on " +
               std::to_string(options.ranks) + " ranks>";
      });
}

void bind_page_allocator(nb::module_& module) {
  nb::class_<PageAllocator> type(module, "PageAllocator",
                                 "The ranks and pages of every sequence: metadata only. Every "
                                 "rank applies the same operations and needs no message.");
  bind_constructor(type);
  bind_operations(type);
  bind_reads(type);
}

BlockMask make_block_mask(nb::handle mask, std::int64_t q_len, std::int64_t kv_len,
                          std::int64_t batch, std::int64_t heads, int q_block, int kv_block,
                          const std::vector<std::int32_t>& q_start) {
  const MaskMod traced = mask_from(mask, mods::causal());  // which runs no Python any more
  const WithoutPythonsLock others_run;
  return BlockMask::create(traced, {.batch = batch,
                                    .heads = heads,
                                    .q_len = q_len,
                                    .kv_len = kv_len,
                                    .q_block = q_block,
                                    .kv_block = kv_block,
                                    .q_start = q_start});
}

void bind_block_mask(nb::module_& module) {
  nb::class_<BlockMask>(module, "BlockMask", "The tiles of (queries x keys) that a mask leaves.")
      .def(
          "row",
          [](const BlockMask& self, std::int64_t b, std::int64_t h, std::int64_t q_block) {
            const BlockRowView row = self.row(b, h, q_block);
            return std::pair(std::vector(row.partial.begin(), row.partial.end()),
                             std::vector(row.full.begin(), row.full.end()));
          },
          nb::arg("b"), nb::arg("h"), nb::arg("q_block"),
          "The partial and the full kv blocks of a q block.")
      .def_prop_ro("sparsity", &BlockMask::sparsity)
      .def("__repr__", &BlockMask::to_string);
  module.def("make_block_mask", &make_block_mask, nb::arg("mask"), nb::kw_only(), nb::arg("q_len"),
             nb::arg("kv_len"), nb::arg("batch") = 1, nb::arg("heads") = 1,
             nb::arg("q_block") = 128, nb::arg("kv_block") = 128,
             nb::arg("q_start") = std::vector<std::int32_t>{});
}

}  // namespace

void bind_allocator(nb::module_& module) {
  bind_page_allocator(module);
  bind_block_mask(module);
}

}  // namespace kvmesh::python
