// Mods: Python functions that are traced with symbolic values, as the lambdas of C++ are.
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <variant>

#include "kvmesh/mod_text.hpp"
#include "python/src/bindings.hpp"

namespace kvmesh::python {
namespace {

/// Captured numbers of a mod, of one of the three types.
struct PyBuffer {
  std::variant<Buffer<float>, Buffer<std::int32_t>, Buffer<bool>> buffer;
  std::size_t rows = 0;  ///< 0: one dimension
};

std::optional<Expr> try_expr(nb::handle value) {
  if (nb::isinstance<Expr>(value)) return nb::cast<Expr>(value);
  // Arrays of one element, which Python would convert to an index, whatever they hold.
  if (nb::hasattr(value, "item")) return try_expr(call(value.attr("item")));
  if (PyBool_Check(value.ptr())) return Expr(value.is(Py_True));
  if (PyIndex_Check(value.ptr())) {
    const auto index = nb::steal(PyNumber_Index(value.ptr()));
    if (!index.is_valid()) throw nb::python_error();
    std::int64_t number = 0;
    if (nb::try_cast(index, number)) return Expr(number);
    throw InvalidArgument("a mod has the number " + std::string(nb::str(index).c_str()) +
                          ": integers of mods have 32 bits");
  }
  if (PyFloat_Check(value.ptr()) || nb::hasattr(value, "__float__")) {
    return Expr(nb::cast<double>(nb::float_(value)));
  }
  return std::nullopt;
}

Expr to_expr(nb::handle value) {
  if (auto expr = try_expr(value)) return *expr;
  throw nb::type_error("a mod is made of its arguments, numbers, and kvmesh.Buffer elements");
}

using Operation = Expr (*)(const Expr&, const Expr&);

/// Python's %: the result has the divisor's sign.
Expr modulo(const Expr& a, const Expr& b) {
  const Expr rest = a % b;
  return where(rest != 0 && (rest < 0) != (b < 0), rest + b, rest);
}

/// Python's //: rounds down.
Expr floor_divide(const Expr& a, const Expr& b) {
  const Expr rest = a % b;  // throws for floating-point numbers
  return a / b - to_int(rest != 0 && (rest < 0) != (b < 0));
}

Expr true_divide(const Expr& a, const Expr& b) { return to_float(a) / to_float(b); }

void binary(nb::class_<Expr>& type, const char* name, const char* reflected, Operation operation) {
  const auto define = [&](const char* method, auto apply) {
    const auto signature = "def " + std::string(method) + "(self, other: object, /) -> Expr";
    type.def(
        method,
        [apply](const Expr& self, nb::object other) -> nb::object {
          const auto right = try_expr(other);
          return right ? nb::cast(apply(self, *right)) : nb::borrow(nb::handle(Py_NotImplemented));
        },
        nb::is_operator(), nb::sig(signature.c_str()));
  };
  define(name, operation);
  if (reflected == nullptr) return;
  define(reflected, [operation](const Expr& a, const Expr& b) { return operation(b, a); });
}

/// Its type and the graph that computes it, as masks and scores show theirs.
std::string describe_expr(const Expr& value) {
  const auto begin = "Expr of " + std::string(name(value.type())) + ":\n";
  if (value.type() == ModType::kBool) {
    return begin + MaskMod([&](auto&&...) { return value; }).to_string();
  }
  std::string text = ScoreMod([&](auto&&...) { return value; }).to_string();
  if (value.type() == ModType::kInt32) {  // the last operation makes it a score; a number is one
    const std::size_t last = text.rfind('\n', text.size() - 2);
    last == text.npos ? text.replace(text.rfind("float32"), 7, "int32") : text.erase(last + 1);
  }
  return begin + text;
}

void bind_operators(nb::class_<Expr>& type) {
  binary(type, "__add__", "__radd__", [](const Expr& a, const Expr& b) { return a + b; });
  binary(type, "__sub__", "__rsub__", [](const Expr& a, const Expr& b) { return a - b; });
  binary(type, "__mul__", "__rmul__", [](const Expr& a, const Expr& b) { return a * b; });
  binary(type, "__truediv__", "__rtruediv__", true_divide);
  binary(type, "__floordiv__", "__rfloordiv__", floor_divide);
  binary(type, "__mod__", "__rmod__", modulo);
  binary(type, "__and__", "__rand__", [](const Expr& a, const Expr& b) { return a && b; });
  binary(type, "__or__", "__ror__", [](const Expr& a, const Expr& b) { return a || b; });
  binary(type, "__lt__", nullptr, [](const Expr& a, const Expr& b) { return a < b; });
  binary(type, "__le__", nullptr, [](const Expr& a, const Expr& b) { return a <= b; });
  binary(type, "__gt__", nullptr, [](const Expr& a, const Expr& b) { return a > b; });
  binary(type, "__ge__", nullptr, [](const Expr& a, const Expr& b) { return a >= b; });
  binary(type, "__eq__", nullptr, [](const Expr& a, const Expr& b) { return a == b; });
  binary(type, "__ne__", nullptr, [](const Expr& a, const Expr& b) { return a != b; });
  type.def("__neg__", [](const Expr& a) { return -a; });
  type.def("__abs__", [](const Expr& a) { return abs(a); });
  type.def("__invert__", [](const Expr& a) { return !a; });
  type.def("__bool__", [](const Expr&) -> bool {
    throw nb::type_error("a mod is traced: use & | ~ and kvmesh.where, not and, or, not, if");
  });
  type.attr("__hash__") = nb::none();
  type.def("__repr__", &describe_expr);
}

template <class T, class Array>
std::vector<T> values_of(const Array& array) {
  const auto* first = static_cast<const T*>(array.data());
  return {first, first + array.size()};
}

std::vector<bool> bools_of(const nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>& array) {
  const auto* first = static_cast<const std::uint8_t*>(array.data());
  return std::vector<bool>(first, first + array.size());
}

PyBuffer make_buffer(nb::object object) {
  // numpy makes a contiguous copy of the right type from any array.
  const nb::object array = call(from_arrays("for_buffer"), object);
  const auto data = nb::cast<nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>>(array);
  const bool is_table = data.ndim() == 2;
  const auto row = is_table ? static_cast<std::int32_t>(data.shape(1)) : 1;
  const std::size_t rows = is_table ? data.shape(0) : 0;
  if (data.dtype() == nb::dtype<float>()) return {Buffer<float>(values_of<float>(data), row), rows};
  if (data.dtype() == nb::dtype<bool>()) return {Buffer<bool>(bools_of(data), row), rows};
  return {Buffer<std::int32_t>(values_of<std::int32_t>(data), row), rows};
}

Expr element(const PyBuffer& buffer, nb::object index) {
  const bool is_pair = nb::isinstance<nb::tuple>(index) && nb::len(index) == 2;
  if (is_pair != (buffer.rows > 0)) {
    throw nb::type_error("a buffer of two dimensions takes two indices, another takes one");
  }
  return std::visit(
      [&](const auto& of) {
        return is_pair ? of.at(to_expr(index[0]), to_expr(index[1])) : of[to_expr(index)];
      },
      buffer.buffer);
}

std::string describe_buffer(const PyBuffer& buffer) {
  constexpr const char* kTypes[] = {"float32", "int32", "bool"};
  const auto [size, row] = std::visit(
      [](const auto& of) { return std::pair(of.size(), of.row_length()); }, buffer.buffer);
  const std::string rows = buffer.rows > 0 ? std::to_string(buffer.rows) + ", " : "";
  return "<kvmesh.Buffer: " + std::string(kTypes[buffer.buffer.index()]) + " [" + rows +
         std::to_string(buffer.rows > 0 ? row : size) + "]>";
}

std::int64_t length_of(const PyBuffer& buffer) {
  return buffer.rows > 0 ? buffer.rows
                         : std::visit([](const auto& of) { return of.size(); }, buffer.buffer);
}

/// What a loop over the buffer gets: its elements, as `buffer[0]`, `buffer[1]`, ...
nb::iterator elements(nb::handle_t<PyBuffer> buffer) {
  if (nb::cast<const PyBuffer&>(buffer).rows > 0) {
    throw nb::type_error("a loop over a buffer of two dimensions: use one index for each of them");
  }
  const nb::module_ builtins = nb::module_::import_("builtins");
  return nb::iter(
      builtins.attr("map")(buffer.attr("__getitem__"), builtins.attr("range")(nb::len(buffer))));
}

void set_buffer(PyBuffer& buffer, nb::object object) {
  const PyBuffer fresh = make_buffer(object);
  const std::string now = describe_buffer(buffer), given = describe_buffer(fresh);
  if (given != now) {
    throw InvalidArgument("a buffer keeps its type and its shape: it is " + now + ", given " +
                          given);
  }
  std::visit(
      [&](auto& of) {
        const auto& with = std::get<std::decay_t<decltype(of)>>(fresh.buffer);
        for (std::int64_t i = 0; i < of.size(); ++i) of.set(i, with[i]);
      },
      buffer.buffer);
}

MaskMod trace_mask(nb::handle function) {
  return MaskMod([&](const Expr& b, const Expr& h, const Expr& q, const Expr& kv) {
    return to_expr(call(function, b, h, q, kv));
  });
}

ScoreMod trace_score(nb::handle function) {
  return ScoreMod([&](const Expr& score, const Expr& b, const Expr& h, const Expr& q,
                      const Expr& kv) { return to_expr(call(function, score, b, h, q, kv)); });
}

void bind_functions(nb::module_& module) {
  module.def(
      "where",
      [](nb::object c, nb::object a, nb::object b) {
        return where(to_expr(c), to_expr(a), to_expr(b));
      },
      nb::arg("condition"), nb::arg("a"), nb::arg("b"));
  module.def("minimum", [](nb::object a, nb::object b) { return min(to_expr(a), to_expr(b)); });
  module.def("maximum", [](nb::object a, nb::object b) { return max(to_expr(a), to_expr(b)); });
  const auto unary = [&](const char* name, Expr (*function)(const Expr&)) {
    module.def(name, [function](nb::object a) { return function(to_expr(a)); });
  };
  unary("exp", &exp);
  unary("log", &log);
  unary("sqrt", &sqrt);
  unary("tanh", &tanh);
  unary("to_float", &to_float);
  unary("to_int", &to_int);
}

void bind_masks(nb::module_& module) {
  nb::class_<MaskMod>(module, "MaskMod",
                      "The keys that a query sees: a function (b, h, q, kv) -> bool of logical "
                      "positions, called once with symbolic values.")
      .def(
          "__init__",
          [](MaskMod* self, nb::callable function) { new (self) MaskMod(trace_mask(function)); },
          nb::arg("function"))
      .def(
          "__call__",
          [](const MaskMod& mask, nb::object b, nb::object h, nb::object q, nb::object kv) {
            return mask(to_expr(b), to_expr(h), to_expr(q), to_expr(kv));
          },
          "Applies the mask inside another mod.")
      .def(
          "evaluate",
          [](const MaskMod& mask, int b, int h, int q, int kv) { return mask(b, h, q, kv); },
          nb::arg("b"), nb::arg("h"), nb::arg("q"), nb::arg("kv"), "Computes one value, slowly.")
      .def("__and__", [](const MaskMod& a, const MaskMod& b) { return a && b; })
      .def("__or__", [](const MaskMod& a, const MaskMod& b) { return a || b; })
      .def("__invert__", [](const MaskMod& a) { return !a; })
      .def_prop_ro("text", &MaskMod::to_string, "The traced graph, one operation per line.")
      .def_static(
          "from_text", [](const std::string& text) { return parse_mask_mod(text); },
          nb::arg("text"))
      .def("__repr__", [](const MaskMod& mask) { return "MaskMod:\n" + mask.to_string(); });
  module.def("causal", &mods::causal);
  module.def("no_mask", &mods::no_mask);
  module.def("sliding_window", &mods::sliding_window, nb::arg("n"));
  module.def("prefix_lm", nb::overload_cast<std::int32_t>(&mods::prefix_lm), nb::arg("prefix_len"));
}

void bind_scores(nb::module_& module) {
  nb::class_<ScoreMod>(module, "ScoreMod",
                       "Changes scores before the softmax: a function (score, b, h, q, kv) -> "
                       "score, called once with symbolic values.")
      .def(
          "__init__",
          [](ScoreMod* self, nb::callable function) { new (self) ScoreMod(trace_score(function)); },
          nb::arg("function"))
      .def(
          "__call__",
          [](const ScoreMod& mod, nb::object score, nb::object b, nb::object h, nb::object q,
             nb::object kv) {
            return mod(to_expr(score), to_expr(b), to_expr(h), to_expr(q), to_expr(kv));
          },
          "Applies the mod inside another mod.")
      .def(
          "evaluate",
          [](const ScoreMod& mod, float score, int b, int h, int q, int kv) {
            return mod(score, b, h, q, kv);
          },
          nb::arg("score"), nb::arg("b"), nb::arg("h"), nb::arg("q"), nb::arg("kv"),
          "Computes one value, slowly.")
      .def_prop_ro("text", &ScoreMod::to_string, "The traced graph, one operation per line.")
      .def_static(
          "from_text", [](const std::string& text) { return parse_score_mod(text); },
          nb::arg("text"))
      .def("__repr__", [](const ScoreMod& mod) { return "ScoreMod:\n" + mod.to_string(); });
  module.def("soft_cap", &mods::soft_cap, nb::arg("cap"));
  module.def("alibi", nb::overload_cast<int>(&mods::alibi), nb::arg("n_heads"));
}

}  // namespace

MaskMod mask_from(nb::handle object, const MaskMod& otherwise) {
  if (object.is_none()) return otherwise;
  if (nb::isinstance<MaskMod>(object)) return nb::cast<MaskMod>(object);
  return trace_mask(object);
}

ScoreMod score_from(nb::handle object) {
  if (object.is_none()) return {};
  if (nb::isinstance<ScoreMod>(object)) return nb::cast<ScoreMod>(object);
  return trace_score(object);
}

void bind_mods(nb::module_& module) {
  nb::class_<Expr> expr(module, "Expr", "A symbolic value of a traced mod.");
  bind_operators(expr);
  nb::class_<PyBuffer>(module, "Buffer",
                       "Numbers that a mod captures, of one or two dimensions: buffer[kv], "
                       "table[h, kv]. Indices out of range are clamped.")
      .def(
          "__init__", [](PyBuffer* self, nb::object v) { new (self) PyBuffer(make_buffer(v)); },
          nb::arg("values"))
      .def("__getitem__", &element)
      .def("__len__", &length_of)
      .def("__iter__", &elements)
      .def("set", &set_buffer, nb::arg("values"), "Changes the numbers; only between steps.")
      .def("__repr__", &describe_buffer);
  bind_functions(module);
  bind_masks(module);
  bind_scores(module);
}

}  // namespace kvmesh::python
