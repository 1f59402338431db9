// Attention over pages that the engine owns.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <span>
#include <vector>

#include "python/src/bindings.hpp"
#include "python/src/members.hpp"

namespace kvmesh::python {
namespace {

/// One layer's pages; keeps their arrays alive.
struct PyPool {
  KvPool pool;
  std::vector<Tensor> kept;
};

/// An ExternalPlan, and the sizes of a layer's tensors on this rank.
struct PlannedTables {
  ExternalPlan plan;
  std::int64_t q_heads, v_dim;
};
using PyExternalPlan = Closable<PlannedTables>;

struct PoolOfPages {
  ExternalPool pool;
  Device device;
  std::int64_t q_heads, v_dim;
};
using PyExternalPool = Closable<PoolOfPages>;

/// [pages, page_size, heads, elements] as [pages, heads, page_size, elements].
void swap_heads(TensorView& view) {
  std::swap(view.shape[1], view.shape[2]);
  std::swap(view.strides[1], view.strides[2]);
}

TensorView pages(PyPool& pool, nb::handle object, bool is_nhd, const char* what) {
  pool.kept.push_back(output(object, what));
  TensorView view = pool.kept.back().view;
  if (view.dims == 3) {  // scales without a last dimension
    view.dims = 4;
    view.shape[3] = view.strides[3] = 1;
  }
  if (view.dims != 4)
    throw nb::type_error((std::string(what) + ": pages have four dimensions").c_str());
  if (is_nhd) swap_heads(view);
  return view;
}

PyPool make_pool(nb::object k, nb::object v, std::string_view order, std::int64_t v_dim,
                 float k_scale, float v_scale, nb::object k_scales, nb::object v_scales) {
  if (order != "hnd" && order != "nhd") {
    throw InvalidArgument("order '" + std::string(order) + "' is neither hnd nor nhd");
  }
  if (v.is_none() == (v_dim == 0)) throw InvalidArgument("a pool has v, or v_dim of latent pages");
  const bool is_nhd = order == "nhd";
  PyPool made;
  made.pool.k = pages(made, k, is_nhd, "k");
  made.pool.k_scale.number = k_scale;
  if (!k_scales.is_none()) made.pool.k_scale.per_token = pages(made, k_scales, is_nhd, "k_scales");
  if (v.is_none()) {
    made.pool.v = made.pool.k;
    made.pool.v.shape[3] = v_dim;
    made.pool.v_scale = made.pool.k_scale;
    return made;
  }
  made.pool.v = pages(made, v, is_nhd, "v");
  made.pool.v_scale.number = v_scale;
  if (!v_scales.is_none()) made.pool.v_scale.per_token = pages(made, v_scales, is_nhd, "v_scales");
  return made;
}

/// Integers of any array, and its second extent if it has one. Those of an array on a GPU stay
/// there, others are copied.
struct Numbers {
  std::span<const std::int32_t> view() const {
    if (there) return {there->array.data(), there->array.size()};
    return values;
  }

  std::vector<std::int32_t> values;
  std::optional<GpuNumbers> there;
  std::int64_t columns = 0;
};

/// The second extent of an array of two dimensions.
template <class Array>
std::int64_t columns_of(const Array& array) {
  return array.ndim() == 2 ? static_cast<std::int64_t>(array.shape(1)) : 0;
}

Numbers numbers_of(nb::handle object, const char* what) {
  Numbers numbers;
  if (object.is_none()) return numbers;
  numbers.there = numbers_on_gpu(object, what);
  if (numbers.there) {
    numbers.columns = columns_of(numbers.there->array);
    return numbers;
  }
  const nb::object array = call(from_arrays("for_table"), object, what);
  const auto ints = nb::cast<nb::ndarray<const std::int32_t, nb::device::cpu>>(array);
  numbers.values.assign(ints.data(), ints.data() + ints.size());
  numbers.columns = columns_of(ints);
  return numbers;
}

/// Page tables from any arrays.
struct Tables {
  Tables(nb::handle q_indptr, nb::handle kv_lens, nb::handle indices, nb::handle indptr,
         nb::handle logical, nb::handle appended, nb::handle token_lists)
      : q_indptr(numbers_of(q_indptr, "q_indptr")),
        kv_lens(numbers_of(kv_lens, "kv_lens")),
        indices(numbers_of(indices, "indices")),
        indptr(numbers_of(indptr, "indptr")),
        logical(numbers_of(logical, "logical")),
        appended(numbers_of(appended, "appended")),
        token_lists(numbers_of(token_lists, "token_lists")),
        is_listed(!logical.is_none()) {
    if (indptr.is_none() == (this->indices.columns == 0)) {
      throw InvalidArgument("page tables are indices [batch, entries], or indptr and indices");
    }
  }
  PageTables view() const {
    PageTables tables{.q_indptr = q_indptr.view(),
                      .kv_lens = kv_lens.view(),
                      .indptr = indptr.view(),
                      .indices = indices.view(),
                      .row_length = indices.columns,
                      .appended = appended.view(),
                      .token_lists = token_lists.view(),
                      .list_length = token_lists.columns};
    if (is_listed) tables.logical = logical.view();
    for (const Numbers* each :
         {&q_indptr, &kv_lens, &indptr, &indices, &logical, &appended, &token_lists}) {
      if (each->there) tables.device = each->there->device;
    }
    return tables;
  }
  Numbers q_indptr, kv_lens, indices, indptr, logical, appended, token_lists;
  bool is_listed;
};

std::string describe_pages(const PyPool& layer) {
  const KvPool& pool = layer.pool;
  const std::string values = pool.is_latent()
                                 ? "latent, values of " + std::to_string(pool.v.size(3))
                                 : "v " + describe(pool.v);
  return "<kvmesh.Pool: k " + describe(pool.k) + ", " + values + ", in " + describe(pool.k.device) +
         ">";
}

std::string describe_pool(PyExternalPool& self) {
  if (self.is_closed()) return "<kvmesh.ExternalPool: closed>";
  const PoolOfPages& of = self.peek();
  return "<kvmesh.ExternalPool: " + std::to_string(of.q_heads) + " query heads, values of " +
         std::to_string(of.v_dim) + ", in " + describe(of.device) + ">";
}

std::string describe_plan(PyExternalPlan& self) {
  if (self.is_closed()) return "<kvmesh.ExternalPlan: closed>";
  const ExternalPlan& plan = self.get().plan;
  return "<kvmesh.ExternalPlan: appends " + std::to_string(plan.append_tokens()) + " tokens, " +
         std::to_string(plan.query_tokens()) + " queries>";
}

PlanOptions options_of(const nb::kwargs& given) {
  PlanOptions options;
  for (const auto& [key, value] : given) {
    const auto name = nb::cast<std::string>(key);
    if (name == "mask") {
      options.mask = mask_from(value, mods::causal());
    } else if (name == "score") {
      options.score = score_from(value);
    } else if (name == "scale") {
      options.scale = value_of<std::optional<float>>(value, name);
    } else if (name == "scatter") {
      options.scatter = scatter_from(value_of<std::string>(value, name));
    } else if (name == "strategy") {
      options.strategy = strategy_from(value_of<std::string>(value, name));
    } else if (name == "way") {
      options.way = way_from(value_of<std::string>(value, name));
    } else if (name == "travels_as") {
      options.travels_as = dtype_from(value_of<std::string>(value, name));
    } else if (name == "q_positions") {
      options.q_positions = value_of<std::vector<std::int64_t>>(value, name);
    } else if (name == "block_mask") {
      options.block_mask = value_of<const BlockMask*>(value, name);
    } else if (name == "limits") {
      options.limits = limits_from(value);
    } else if (name == "shares_prefixes") {
      options.shares_prefixes = value_of<bool>(value, name);
    } else if (name == "least_saved_tokens") {
      options.least_saved_tokens = value_of<std::optional<std::int64_t>>(value, name);
    } else if (name == "fixed_split_tokens") {
      options.fixed_split_tokens = value_of<std::int64_t>(value, name);
    } else {
      throw nb::type_error(("plan() got an unexpected keyword argument '" + name + "'").c_str());
    }
  }
  return options;
}

PyExternalPlan plan(PyExternalPool& self, nb::object q_indptr, nb::object kv_lens,
                    nb::object indices, nb::object indptr, nb::object logical, nb::object appended,
                    nb::object token_lists, nb::object stream, const nb::kwargs& kwargs) {
  const Tables tables(q_indptr, kv_lens, indices, indptr, logical, appended, token_lists);
  const PlanOptions options = options_of(kwargs);
  const auto of = self.use();
  const Stream on = stream_of(stream, of->device);
  const WithoutPythonsLock others_run;
  return PyExternalPlan({of->pool.plan(tables.view(), options, on), of->q_heads, of->v_dim},
                        self.gate());
}

void replan(PyExternalPool& self, PyExternalPlan& step, nb::object q_indptr, nb::object kv_lens,
            nb::object indices, nb::object indptr, nb::object logical, nb::object appended,
            nb::object token_lists, nb::object stream,
            const std::vector<std::int64_t>& q_positions) {
  const Tables tables(q_indptr, kv_lens, indices, indptr, logical, appended, token_lists);
  const auto of = self.use();
  ExternalPlan& plan = step.get().plan;
  const Stream on = stream_of(stream, of->device);
  const WithoutPythonsLock others_run;
  of->pool.replan(plan, tables.view(), on, q_positions);
}

nb::any run(PyExternalPlan& self, PyPool& layer, nb::object q, nb::object k, nb::object v,
            nb::object out, nb::object lse, nb::object stream, nb::object sinks) {
  const auto use = self.use();
  PlannedTables& step = *use;
  const auto optional = [](nb::handle object, const char* what) {
    return object.is_none() ? Tensor{} : input(object, what);
  };
  const Tensor queries = input(q, "q");
  const Tensor keys = optional(k, "k"), values = optional(v, "v"),
               counted = optional(sinks, "sinks");
  const Output output = output_of(
      {step.plan.tokens_of_output().size(), step.plan.heads_of_output().size(), step.v_dim}, q, out,
      lse);
  const Stream on = stream_of(stream, queries.view.device);
  {
    const WithoutPythonsLock others_run;
    step.plan.run(layer.pool,
                  {.q = queries.view, .k = keys.view, .v = values.view, .sinks = counted.view},
                  output.views(), on);
  }
  return output.result();
}

std::pair<nb::any, nb::any> attend_partial(PyExternalPlan& self, PyPool& layer, nb::object q,
                                           nb::object o, nb::object lse, nb::object stream,
                                           nb::object sinks) {
  const auto use = self.use();
  PlannedTables& step = *use;
  const Tensor queries = input(q, "q");
  const std::int64_t tokens = step.plan.query_tokens();
  if (o.is_none()) o = make_array(q, {tokens, step.q_heads, step.v_dim}, true);
  if (lse.is_none()) lse = make_array(q, {tokens, step.q_heads}, true);
  const Tensor counted = sinks.is_none() ? Tensor{} : input(sinks, "sinks");
  const Tensor part_o = output(o, "o"), part_lse = output(lse, "lse");
  const Stream on = stream_of(stream, queries.view.device);
  {
    const WithoutPythonsLock others_run;
    step.plan.attend_partial(layer.pool, queries.view, {.o = part_o.view, .lse = part_lse.view}, on,
                             counted.view);
  }
  return {of_any_type(o), of_any_type(lse)};
}

nb::any combine(PyExternalPlan& self, nb::object o, nb::object lse, nb::object out,
                nb::object out_lse, nb::object stream) {
  const auto use = self.use();
  PlannedTables& step = *use;
  const Tensor part_o = input(o, "o"), part_lse = input(lse, "lse");
  const Output output = output_of(
      {step.plan.tokens_of_output().size(), step.plan.heads_of_output().size(), step.v_dim}, o, out,
      out_lse);
  const Stream on = stream_of(stream, part_o.view.device);
  {
    const WithoutPythonsLock others_run;
    step.plan.combine({.o = part_o.view, .lse = part_lse.view}, output.views(), on);
  }
  return output.result();
}

nb::any gather_queries(PyExternalPlan& self, nb::object share, nb::object q, nb::object stream) {
  const auto use = self.use();
  PlannedTables& step = *use;
  const Tensor mine = input(share, "share");
  if (q.is_none()) {
    const std::int64_t k_dim = mine.view.dims == 3 ? mine.view.size(2) : 0;
    q = make_array(share, {step.plan.query_tokens(), step.q_heads, k_dim}, false);
  }
  const Tensor all = output(q, "q");
  const Stream on = stream_of(stream, mine.view.device);
  {
    const WithoutPythonsLock others_run;
    step.plan.gather_queries(mine.view, all.view, on);
  }
  return of_any_type(q);
}

void bind_plans(nb::module_& module) {
  nb::class_<PyExternalPlan> type(module, "ExternalPlan",
                                  "One step over an engine's pages: planned once, run per layer.");
  make_closable(type);
  type.def("run", &run, nb::arg("layer"), nb::arg("q"), nb::arg("k") = nb::none(),
           nb::arg("v") = nb::none(), nb::arg("out") = nb::none(), nb::arg("lse") = nb::none(),
           nb::arg("stream") = nb::none(), nb::arg("sinks") = nb::none(),
           "Appends k and v if they are given, attends and combines, over a layer's Pool. Returns "
           "as StepPlan.run does.")
      .def("attend_partial", &attend_partial, nb::arg("layer"), nb::arg("q"),
           nb::arg("o") = nb::none(), nb::arg("lse") = nb::none(), nb::arg("stream") = nb::none(),
           nb::arg("sinks") = nb::none(),
           "Attention over this rank's pages alone: (o, lse), float32, natural logarithm.")
      .def("combine", &combine, nb::arg("o"), nb::arg("lse"), nb::arg("out") = nb::none(),
           nb::arg("out_lse") = nb::none(), nb::arg("stream") = nb::none(),
           "Merges the partials of all ranks. Returns as run does.")
      .def("gather_queries", &gather_queries, nb::arg("share"), nb::arg("q") = nb::none(),
           nb::arg("stream") = nb::none(), "As StepPlan.gather_queries.")
      .def_prop_ro("query_tokens",
                   [](PyExternalPlan& self) { return self.get().plan.query_tokens(); })
      .def_prop_ro("append_tokens",
                   [](PyExternalPlan& self) { return self.get().plan.append_tokens(); })
      .def_prop_ro("generation", [](PyExternalPlan& self) { return self.get().plan.generation(); })
      .def("__repr__", &describe_plan);
}

}  // namespace

void bind_external(nb::module_& module) {
  nb::class_<PyPool>(module, "Pool",
                     "One layer's pages on this rank: k and v [pages, heads, page_size, dim] "
                     "(order 'hnd') or [pages, page_size, heads, dim] ('nhd'), any strides with a "
                     "contiguous last dimension; v_dim instead of v for latent pages; k_scales and "
                     "v_scales [pages, heads, page_size] in the same order, float32.")
      .def(
          "__init__",
          [](PyPool* self, nb::object k, nb::object v, std::string_view order, std::int64_t v_dim,
             float k_scale, float v_scale, nb::object k_scales, nb::object v_scales) {
            new (self) PyPool(make_pool(k, v, order, v_dim, k_scale, v_scale, k_scales, v_scales));
          },
          nb::arg("k"), nb::arg("v") = nb::none(), nb::kw_only(), nb::arg("order") = "hnd",
          nb::arg("v_dim") = 0, nb::arg("k_scale") = 1.0f, nb::arg("v_scale") = 1.0f,
          nb::arg("k_scales") = nb::none(), nb::arg("v_scales") = nb::none())
      .def("__repr__", &describe_pages);
  bind_plans(module);
  nb::class_<PyExternalPool> type(module, "ExternalPool",
                                  "Attention over an engine's pools, all like `layer`. See "
                                  "kvmesh/external_pool.hpp.");
  type.def(
      "__init__",
      [](PyExternalPool* self, PyMesh& mesh, const PyPool& layer, int q_heads,
         std::int64_t interleave) {
        const auto of = mesh.use();
        new (self) PyExternalPool(
            {ExternalPool(*of, layer.pool, {.q_heads = q_heads, .interleave = interleave}),
             of->device(), q_heads, layer.pool.v.size(3)},
            mesh.gate());
      },
      nb::arg("mesh"), nb::arg("layer"), nb::kw_only(), nb::arg("q_heads"),
      nb::arg("interleave") = 0);
  make_closable(type);
  type.def("plan", &plan, nb::arg("q_indptr"), nb::arg("kv_lens"), nb::arg("indices"),
           nb::arg("indptr") = nb::none(), nb::arg("logical") = nb::none(),
           nb::arg("appended") = nb::none(), nb::arg("token_lists") = nb::none(),
           nb::arg("stream") = nb::none(), nb::arg("options"),
           "Plans one step over page tables: indices [batch, entries] (a block table), or indptr "
           "and indices. Arrays on the GPU hold int32; they are read after the work on `stream`. "
           "The options are those of KvCache.plan.")
      .def("replan", &replan, nb::arg("step"), nb::arg("q_indptr"), nb::arg("kv_lens"),
           nb::arg("indices"), nb::arg("indptr") = nb::none(), nb::arg("logical") = nb::none(),
           nb::arg("appended") = nb::none(), nb::arg("token_lists") = nb::none(),
           nb::arg("stream") = nb::none(), nb::arg("q_positions") = std::vector<std::int64_t>{})
      .def("__repr__", &describe_pool);
}

}  // namespace kvmesh::python
