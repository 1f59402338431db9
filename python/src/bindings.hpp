// Declarations that the parts of the Python module share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "kvmesh/kvmesh.hpp"
#include "python/src/closable.hpp"

namespace kvmesh::python {

namespace nb = nanobind;

void bind_errors(nb::module_& module);
void bind_mods(nb::module_& module);
void bind_allocator(nb::module_& module);
void bind_mesh(nb::module_& module);
void bind_plan(nb::module_& module);
void bind_cache(nb::module_& module);
void bind_external(nb::module_& module);
void bind_prefix(nb::module_& module, nb::class_<Closable<KvCache>>& cache);
void bind_sequences(nb::class_<Closable<KvCache>>& cache);
void bind_combine(nb::module_& module);
void bind_paged(nb::module_& module);

using PyMesh = Closable<Mesh>;
using PyCache = Closable<KvCache>;
/// The sizes of a layer's tensors on this rank.
struct LayerSizes {
  std::int64_t q_heads, kv_heads, k_dim, v_dim;
  bool is_latent;
};
/// A plan, and the sizes of each layer.
struct PlannedStep {
  StepPlan plan;
  std::vector<LayerSizes> layers;

  /// Returns the sizes of a layer; of layer 0 if it does not exist, since the plan refuses it
  /// later.
  const LayerSizes& sizes(int layer) const {
    const auto at = static_cast<std::size_t>(layer);
    return layers[at < layers.size() ? at : 0];
  }
};
using PyPlan = Closable<PlannedStep>;

/// Returns the element of `all` whose name is `text`. @throws InvalidArgument.
template <class Enum>
Enum named(std::string_view text, std::initializer_list<Enum> all, const char* what) {
  std::string names;
  for (Enum each : all) {
    if (name(each) == text) return each;
    names += (names.empty() ? "" : ", ") + std::string(name(each));
  }
  throw InvalidArgument(std::string(what) + " '" + std::string(text) + "' is none of " + names);
}
Scatter scatter_from(std::string_view text);
CombineStrategy strategy_from(std::string_view text);
std::optional<WayKind> way_from(std::optional<std::string_view> text);
/// None, a pair (sequences, query_tokens), or a dict of StepLimits' members.
/// @throws nb::type_error for another member.
std::optional<StepLimits> limits_from(nb::handle limits);
/// @throws InvalidArgument for unknown names.
PrefixOptions prefix_options(bool enabled, std::string_view hash, std::string_view eviction,
                             std::string seed);

/// A tensor of any library that speaks DLPack, and the view of it; the array keeps it alive.
struct Tensor {
  nb::ndarray<> writable;
  nb::ndarray<nb::ro> readable;
  TensorView view;  ///< if the array is read-only it is only read
};
/// uint16 elements are the bits of bfloat16, which numpy does not have; ml_dtypes' bfloat16 arrays
/// are accepted. @throws nb::type_error that names `what`.
Tensor input(nb::handle object, const char* what);
Tensor output(nb::handle object, const char* what);

/// An array of int32 on a GPU, kept alive.
struct GpuNumbers {
  nb::ndarray<const std::int32_t, nb::device::cuda, nb::c_contig> array;
  Device device;
};
/// Returns nothing for an array that is not on a GPU. @throws nb::type_error that names `what`
/// unless it is contiguous and holds int32.
std::optional<GpuNumbers> numbers_on_gpu(nb::handle object, const char* what);

/// A number of the CUDA runtime, or a stream object of torch or cupy. None is torch's current
/// stream if torch is loaded and the mesh is on a GPU, else CUDA's default one.
Stream stream_of(nb::handle object, Device device);

/// Returns an array for results: of torch if `like` is torch's, else of numpy, in float32 or
/// `like`'s type.
nb::object make_array(nb::handle like, std::initializer_list<std::int64_t> shape, bool float32);
/// Returns a function of kvmesh/_arrays.py.
nb::object from_arrays(const char* name);

/// A tensor of the caller's own library, which is of any type to type checkers.
inline nb::any of_any_type(nb::handle object) { return nb::borrow<nb::any>(object); }

/// The merged rows of this rank, in the caller's arrays or in new ones.
struct Output {
  nb::object o, lse;
  Tensor o_tensor, lse_tensor;

  CombineOutput views() const { return {.o = o_tensor.view, .lse = lse_tensor.view}; }
  nb::any result() const { return of_any_type(lse.is_none() ? o : nb::make_tuple(o, lse)); }
};
/// `shape` [tokens, heads, v_dim].
Output output_of(const std::array<std::int64_t, 3>& shape, nb::handle like, nb::object o,
                 nb::object lse);

/// `None` gives the default; else a MaskMod, or a function, which is traced.
MaskMod mask_from(nb::handle object, const MaskMod& otherwise);
ScoreMod score_from(nb::handle object);

}  // namespace kvmesh::python
