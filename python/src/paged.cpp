// The page tables and calls of kvmesh.torch.PagedAttention: the Python class converts torch's block
// masks and closures, and gives this one plain numbers and tensors.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include "kvmesh/paged_attention.hpp"
#include "python/src/bindings.hpp"

namespace kvmesh::python {
namespace {

using Integers = nb::ndarray<const std::int64_t, nb::c_contig, nb::device::cpu>;
/// [B, H, q blocks, kv blocks]: 0 empty, 1 partly visible, 2 full.
using BlockMap = nb::ndarray<const std::uint8_t, nb::ndim<4>, nb::c_contig, nb::device::cpu>;

std::span<const std::int64_t> numbers(const Integers& array) {
  return {array.data(), array.size()};
}

BlockMask block_mask_of(const BlockMap& map, std::int64_t q_len, std::int64_t kv_len, int q_block,
                        int kv_block, nb::handle mask) {
  const MaskMod traced = mask_from(mask, {});
  const WithoutPythonsLock others_run;
  const BlockMaskShape shape{.batch = static_cast<std::int64_t>(map.shape(0)),
                             .heads = static_cast<std::int64_t>(map.shape(1)),
                             .q_len = q_len,
                             .kv_len = kv_len,
                             .q_block = q_block,
                             .kv_block = kv_block};
  const std::size_t columns = map.shape(3);
  std::vector<BlockRow> rows(map.shape(0) * map.shape(1) * map.shape(2));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::size_t column = 0; column < columns; ++column) {
      const std::uint8_t kind = map.data()[i * columns + column];
      if (kind == 0) continue;
      (kind == 1 ? rows[i].partial : rows[i].full).push_back(static_cast<std::int32_t>(column));
    }
  }
  return BlockMask::from_lists(shape, rows, traced);
}

class PyPagedAttention {
 public:
  PyPagedAttention(PyMesh& mesh, std::int64_t n_pages, int page_size, int max_batch_size,
                   std::string_view placement)
      : device_(mesh.get().device()),
        paged_(PagedAttention(mesh.get(), n_pages, page_size, max_batch_size,
                              placement_from(placement)),
               mesh.gate()) {}

  PagedAttention& get() { return paged_.get(); }
  void close() { paged_.close(); }
  bool is_closed() const { return paged_.is_closed(); }

  std::vector<std::int64_t> pages(int row) {
    std::vector<std::int64_t> numbers;
    for (PageId page : get().pages(row)) numbers.push_back(get().physical_page(page));
    return numbers;
  }

  void assign(const std::vector<int>& rows, const Integers& positions, nb::handle k_val,
              nb::handle v_val, nb::handle k_cache, nb::handle v_cache) {
    const auto paged = paged_.use();
    const Tensor k = input(k_val, "k_val"), v = input(v_val, "v_val");
    const Tensor to_k = output(k_cache, "k_cache"), to_v = output(v_cache, "v_cache");
    const Stream on = stream_of(nb::none(), device_);
    const WithoutPythonsLock others_run;
    paged->assign(rows, numbers(positions), k.view, v.view, to_k.view, to_v.view, on);
  }

  void forward(nb::handle query, nb::handle k_cache, nb::handle v_cache, const Integers& kv_lens,
               nb::handle out, nb::handle lse, const std::vector<int>& rows,
               const BlockMask* block_mask, nb::handle score, std::optional<float> scale,
               bool enable_gqa) {
    const auto paged = paged_.use();
    const Tensor q = input(query, "query");
    const Tensor k = input(k_cache, "k_cache"), v = input(v_cache, "v_cache");
    const Tensor to = output(out, "out");
    const Tensor to_lse = lse.is_none() ? Tensor{} : output(lse, "lse");
    const PagedAttention::ForwardOptions options{.block_mask = block_mask,
                                                 .batch_indices = rows,
                                                 .score_mod = score_from(score),
                                                 .scale = scale,
                                                 .enable_gqa = enable_gqa,
                                                 .lse = to_lse.view,
                                                 .stream = stream_of(nb::none(), device_)};
    const WithoutPythonsLock others_run;
    paged->forward(q.view, k.view, v.view, numbers(kv_lens), to.view, options);
  }

 private:
  Device device_;
  Closable<PagedAttention> paged_;
};

}  // namespace

void bind_paged(nb::module_& module) {
  module.def("block_mask_of", &block_mask_of, nb::arg("map"), nb::kw_only(), nb::arg("q_len"),
             nb::arg("kv_len"), nb::arg("q_block"), nb::arg("kv_block"), nb::arg("mask"));
  nb::class_<PyPagedAttention> type(module, "PagedAttention",
                                    "The implementation of kvmesh.torch.PagedAttention.");
  make_closable(type);
  type.def(nb::init<PyMesh&, std::int64_t, int, int, std::string_view>(), nb::arg("mesh"),
           nb::arg("n_pages"), nb::arg("page_size"), nb::arg("max_batch_size"),
           nb::arg("placement"))
      .def(
          "reserve",
          [](PyPagedAttention& self, int row, std::int64_t tokens) {
            self.get().reserve(row, tokens);
          },
          nb::arg("row"), nb::arg("tokens"))
      .def(
          "erase", [](PyPagedAttention& self, int row) { self.get().erase(row); }, nb::arg("row"))
      .def("pages", &PyPagedAttention::pages, nb::arg("row"),
           "The row's pages in logical order, numbered as in a full cache.")
      .def("assign", &PyPagedAttention::assign, nb::arg("rows"), nb::arg("positions"),
           nb::arg("k_val"), nb::arg("v_val"), nb::arg("k_cache"), nb::arg("v_cache"))
      .def("forward", &PyPagedAttention::forward, nb::arg("query"), nb::arg("k_cache"),
           nb::arg("v_cache"), nb::arg("kv_lens"), nb::arg("out"), nb::arg("lse").none(),
           nb::arg("rows"), nb::arg("block_mask").none(), nb::arg("score").none(),
           nb::arg("scale").none(), nb::arg("enable_gqa"))
      .def_prop_ro("free_pages", [](PyPagedAttention& self) { return self.get().free_pages(); })
      .def_prop_ro("pages_per_rank",
                   [](PyPagedAttention& self) { return self.get().pages_per_rank(); })
      .def_prop_ro("first_page", [](PyPagedAttention& self) { return self.get().first_page(); });
}

}  // namespace kvmesh::python
