// A planned step: the calls of every layer.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "python/src/bindings.hpp"
#include "python/src/members.hpp"

namespace kvmesh::python {
namespace {

/// New keys or values [tokens, kv_heads, dim]; none are empty.
Tensor new_tokens(nb::handle object, const PlannedStep& step, std::int64_t heads, std::int64_t dim,
                  const Tensor& like, const char* what) {
  if (!object.is_none()) return input(object, what);
  if (step.plan.append_tokens() != 0) {
    throw InvalidArgument(std::string(what) + " is missing: the step appends " +
                          std::to_string(step.plan.append_tokens()) + " tokens");
  }
  Tensor nothing;
  nothing.view = {like.view.data, like.view.dtype, {0, heads, dim}, like.view.device};
  return nothing;
}

/// Latent pages take no values.
Tensor new_values(nb::handle object, const PlannedStep& step, int layer, const Tensor& like) {
  const LayerSizes& sizes = step.sizes(layer);
  if (sizes.is_latent && object.is_none()) return Tensor{};
  return new_tokens(object, step, sizes.kv_heads, sizes.v_dim, like, "v");
}

Output output_of(const PlannedStep& step, int layer, nb::handle like, nb::object o,
                 nb::object lse) {
  return python::output_of({step.plan.tokens_of_output().size(),
                            step.plan.heads_of_output(layer).size(), step.sizes(layer).v_dim},
                           like, o, lse);
}

nb::any run(PyPlan& self, int layer, nb::object q, nb::object k, nb::object v, nb::object out,
            nb::object lse, nb::object stream, nb::object sinks) {
  const auto use = self.use();
  PlannedStep& step = *use;
  const Tensor queries = input(q, "q");
  const LayerSizes& sizes = step.sizes(layer);
  const Tensor keys = new_tokens(k, step, sizes.kv_heads, sizes.k_dim, queries, "k");
  const Tensor values = new_values(v, step, layer, queries);
  const Tensor counted = sinks.is_none() ? Tensor{} : input(sinks, "sinks");
  const Output output = output_of(step, layer, q, out, lse);
  const Stream on = stream_of(stream, queries.view.device);
  {
    const WithoutPythonsLock others_run;
    step.plan.run(layer,
                  {.q = queries.view, .k = keys.view, .v = values.view, .sinks = counted.view},
                  output.views(), on);
  }
  return output.result();
}

void append(PyPlan& self, int layer, nb::object k, nb::object v, nb::object stream) {
  const auto step = self.use();
  const Tensor keys = input(k, "k");
  const Tensor values = new_values(v, *step, layer, keys);
  const Stream on = stream_of(stream, keys.view.device);
  const WithoutPythonsLock others_run;
  step->plan.append(layer, keys.view, values.view, on);
}

std::pair<nb::any, nb::any> attend_partial(PyPlan& self, int layer, nb::object q, nb::object o,
                                           nb::object lse, nb::object stream, nb::object sinks) {
  const auto use = self.use();
  PlannedStep& step = *use;
  const Tensor queries = input(q, "q");
  const std::int64_t tokens = step.plan.query_tokens();
  const LayerSizes& sizes = step.sizes(layer);
  if (o.is_none()) o = make_array(q, {tokens, sizes.q_heads, sizes.v_dim}, true);
  if (lse.is_none()) lse = make_array(q, {tokens, sizes.q_heads}, true);
  const Tensor counted = sinks.is_none() ? Tensor{} : input(sinks, "sinks");
  const Tensor part_o = output(o, "o");
  const Tensor part_lse = output(lse, "lse");
  const Stream on = stream_of(stream, queries.view.device);
  {
    const WithoutPythonsLock others_run;
    step.plan.attend_partial(layer, queries.view, {.o = part_o.view, .lse = part_lse.view}, on,
                             counted.view);
  }
  return {of_any_type(o), of_any_type(lse)};
}

nb::any combine(PyPlan& self, nb::object o, nb::object lse, nb::object out, nb::object out_lse,
                nb::object stream, int layer) {
  const auto use = self.use();
  PlannedStep& step = *use;
  const Tensor part_o = input(o, "o");
  const Tensor part_lse = input(lse, "lse");
  const Output output = output_of(step, layer, o, out, out_lse);
  const Stream on = stream_of(stream, part_o.view.device);
  {
    const WithoutPythonsLock others_run;
    step.plan.combine({.o = part_o.view, .lse = part_lse.view}, output.views(), on, layer);
  }
  return output.result();
}

nb::any gather_queries(PyPlan& self, int layer, nb::object share, nb::object q, nb::object stream) {
  const auto use = self.use();
  PlannedStep& step = *use;
  const LayerSizes& sizes = step.sizes(layer);
  if (q.is_none()) {
    q = make_array(share, {step.plan.query_tokens(), sizes.q_heads, sizes.k_dim}, false);
  }
  const Tensor mine = input(share, "share");
  const Tensor all = output(q, "q");
  const Stream on = stream_of(stream, mine.view.device);
  {
    const WithoutPythonsLock others_run;
    step.plan.gather_queries(layer, mine.view, all.view, on);
  }
  return of_any_type(q);
}

std::string describe_plan(PyPlan& self) {
  if (self.is_closed()) return "<kvmesh.StepPlan: closed>";
  const StepPlan& plan = self.get().plan;
  return "<kvmesh.StepPlan: appends " + std::to_string(plan.append_tokens()) + " tokens, " +
         std::to_string(plan.query_tokens()) + " queries>";
}

void bind_calls(nb::class_<PyPlan>& type) {
  type.def(
          "run", &run, nb::arg("layer"), nb::arg("q"), nb::arg("k") = nb::none(),
          nb::arg("v") = nb::none(), nb::arg("out") = nb::none(), nb::arg("lse") = nb::none(),
          nb::arg("stream") = nb::none(), nb::arg("sinks") = nb::none(),
          "Appends, attends and combines. q [tokens, q_heads, k_dim], k and v [new tokens, "
          "kv_heads, dim], left out if nothing is appended; sinks [q_heads] float32, the "
          "layer's attention sinks. Returns out, new if none is given; with lse (an array, or True "
          "for a new one) (out, lse).")
      .def("append", &append, nb::arg("layer"), nb::arg("k"), nb::arg("v") = nb::none(),
           nb::arg("stream") = nb::none())
      .def("attend_partial", &attend_partial, nb::arg("layer"), nb::arg("q"),
           nb::arg("o") = nb::none(), nb::arg("lse") = nb::none(), nb::arg("stream") = nb::none(),
           nb::arg("sinks") = nb::none(),
           "Attention over this rank's pages alone: (o, lse), float32, natural logarithm.")
      .def("combine", &combine, nb::arg("o"), nb::arg("lse"), nb::arg("out") = nb::none(),
           nb::arg("out_lse") = nb::none(), nb::arg("stream") = nb::none(), nb::arg("layer") = 0,
           "Merges the partials of all ranks, of `layer` or another layer of its group. Returns as "
           "run does.")
      .def("gather_queries", &gather_queries, nb::arg("layer"), nb::arg("share"),
           nb::arg("q") = nb::none(), nb::arg("stream") = nb::none(),
           "For engines whose kv ranks each compute a share of the heads' queries, [tokens, heads, "
           "k_dim]. Returns q [tokens, q_heads, k_dim] with those of all ranks, new if none is "
           "given; share may be its heads' place in q.");
}

void bind_shapes(nb::class_<PyPlan>& type) {
  type.def_prop_ro("query_tokens", [](PyPlan& self) { return self.get().plan.query_tokens(); })
      .def_prop_ro("append_tokens", [](PyPlan& self) { return self.get().plan.append_tokens(); })
      .def(
          "query_shape",
          [](PyPlan& self, int layer) {
            const PlannedStep& step = self.get();
            const LayerSizes& sizes = step.sizes(layer);
            return std::tuple(step.plan.query_tokens(), sizes.q_heads, sizes.k_dim);
          },
          nb::arg("layer") = 0, "(tokens, q_heads, k_dim) of the queries of a layer.")
      .def(
          "output_shape",
          [](PyPlan& self, int layer) {
            const PlannedStep& step = self.get();
            return std::tuple(step.plan.tokens_of_output().size(),
                              step.plan.heads_of_output(layer).size(), step.sizes(layer).v_dim);
          },
          nb::arg("layer") = 0, "(tokens, heads, v_dim) of this rank's output of a layer.")
      .def(
          "token_owners",
          [](PyPlan& self, int layer) {
            const Participation& ranks = self.get().plan.participation(layer);
            std::vector<std::int32_t> owners;
            for (std::int64_t t = 0; t < ranks.tokens(); ++t) {
              owners.push_back(ranks.owner(t).value);
            }
            return owners;
          },
          nb::arg("layer") = 0,
          "The kv rank of each query token that scatter='owner' gives its rows of a layer to.");
}

void bind_state(nb::class_<PyPlan>& type) {
  type.def_prop_ro(
          "visited_tiles", [](PyPlan& self) { return self.get().plan.tiles().visited; },
          "Pages that one layer of each kind reads on this rank, once per block of query rows. "
          "Waits for the device.")
      .def_prop_ro("workspace_bytes",
                   [](PyPlan& self) { return self.get().plan.workspace_bytes(); })
      .def_prop_ro(
          "generation", [](PyPlan& self) { return self.get().plan.generation(); },
          "Changes when captured graphs become invalid.")
      .def("__repr__", &describe_plan);
}

}  // namespace

Output output_of(const std::array<std::int64_t, 3>& shape, nb::handle like, nb::object o,
                 nb::object lse) {
  if (lse.is(Py_False)) lse = nb::none();
  Output output{.o = o, .lse = lse, .o_tensor = {}, .lse_tensor = {}};
  if (o.is_none()) output.o = make_array(like, {shape[0], shape[1], shape[2]}, false);
  if (lse.is(Py_True)) output.lse = make_array(like, {shape[0], shape[1]}, true);
  output.o_tensor = kvmesh::python::output(output.o, "out");
  if (!output.lse.is_none()) output.lse_tensor = kvmesh::python::output(output.lse, "lse");
  return output;
}

std::optional<StepLimits> limits_from(nb::handle limits) {
  if (limits.is_none()) return std::nullopt;
  StepLimits room;
  if (nb::isinstance<nb::dict>(limits)) {
    Members members(limits, "plan's limits");
    members.read("sequences", room.sequences);
    members.read("query_tokens", room.query_tokens);
    members.read("pages", room.pages);
    members.read("shares_prefixes", room.shares_prefixes);
    members.done();
  } else {
    std::pair<std::int64_t, std::int64_t> pair;
    if (!nb::try_cast(limits, pair))
      refuse("limits are (sequences, query_tokens) or a dict", limits);
    std::tie(room.sequences, room.query_tokens) = pair;
  }
  return room;
}

void bind_plan(nb::module_& module) {
  nb::class_<PyPlan> type(module, "StepPlan",
                          "One step of a batch: planned once, run for each layer. Valid until one "
                          "of its sequences changes.");
  make_closable(type);
  bind_calls(type);
  bind_shapes(type);
  bind_state(type);
}

}  // namespace kvmesh::python
