#include <cstring>

#include "python/src/bindings.hpp"

namespace kvmesh::python {
namespace {

using Code = nb::dlpack::dtype_code;

std::optional<Dtype> dtype_of(nb::dlpack::dtype type) {
  const auto is = [&](Code code, int bits) {
    return type.code == static_cast<std::uint8_t>(code) && type.bits == bits && type.lanes == 1;
  };
  if (is(Code::Float, 32)) return Dtype::kFloat32;
  if (is(Code::Float, 16)) return Dtype::kFloat16;
  if (is(Code::Bfloat, 16) || is(Code::UInt, 16)) return Dtype::kBFloat16;
  if (is(Code::UInt, 8)) return Dtype::kFloat8E4M3;  // its bits, which few libraries export as such
  return std::nullopt;
}

[[noreturn]] void refuse(const char* what, const std::string& reason) {
  throw nb::type_error((std::string(what) + ": " + reason).c_str());
}

template <class Array>
TensorView view_of(const Array& array, const char* what) {
  TensorView view;
  const auto dtype = dtype_of(array.dtype());
  if (!dtype) refuse(what, "elements must be float32, float16 or bfloat16");
  if (array.ndim() > TensorView::kMaxDims) refuse(what, "more than four dimensions");
  view.data = const_cast<void*>(static_cast<const void*>(array.data()));
  view.dtype = *dtype;
  view.dims = static_cast<int>(array.ndim());
  for (std::size_t i = 0; i < array.ndim(); ++i) {
    view.shape[i] = static_cast<std::int64_t>(array.shape(i));
    view.strides[i] = array.stride(i);
  }
  if (array.device_type() == nb::device::cuda::value) {
    view.device = {DeviceKind::kCuda, array.device_id()};
  } else if (array.device_type() != nb::device::cpu::value) {
    refuse(what, "neither in host memory nor on a CUDA device");
  }
  return view;
}

bool is_loaded(const char* module) {
  return nb::module_::import_("sys").attr("modules").attr("__contains__")(module).is(Py_True);
}

/// torch's tensors' own __dlpack__ is a Python function and takes 2 us; to_dlpack takes 0.3.
struct Torch {
  nb::object tensor = nb::module_::import_("torch").attr("Tensor");
  nb::object to_dlpack = nb::module_::import_("torch.utils.dlpack").attr("to_dlpack");
  nb::object is_grad_enabled = nb::module_::import_("torch").attr("is_grad_enabled");
  // Faster in each call than a look-up by text, and than a bound method.
  nb::str requires_grad = nb::steal<nb::str>(PyUnicode_InternFromString("requires_grad"));
  nb::object is_neg = tensor.attr("is_neg");
  nb::object new_empty = tensor.attr("new_empty");
};

bool is_named(nb::handle type, const char* name) {
  return std::strcmp(reinterpret_cast<PyTypeObject*>(type.ptr())->tp_name, name) == 0;
}

/// Returns null unless the object is a tensor of torch.
const Torch* torch_of(nb::handle object) {
  static const Torch* torch = nullptr;  // stays: Python has ended when statics are destroyed
  const nb::handle type = object.type();
  if (!is_named(type, "Tensor") || !(torch != nullptr || is_loaded("torch"))) return nullptr;
  if (torch == nullptr) torch = new Torch;
  return type.is(torch->tensor) ? torch : nullptr;
}

struct Numpy {
  nb::object array = nb::module_::import_("numpy").attr("ndarray");
  nb::object empty = nb::module_::import_("numpy").attr("empty");
};

/// Returns null unless the object is an array of numpy.
const Numpy* numpy_of(nb::handle object) {
  static const Numpy* numpy = nullptr;  // stays, as torch_of's
  if (!is_named(object.type(), "numpy.ndarray")) return nullptr;
  if (numpy == nullptr) numpy = new Numpy;
  return object.type().is(numpy->array) ? numpy : nullptr;
}

/// to_dlpack exports these as the elements in their memory, which is not all that they are.
void refuse_more_than_elements(const Torch& torch, nb::handle tensor, const char* what) {
  if (tensor.attr(torch.requires_grad).is(Py_True) && torch.is_grad_enabled().is(Py_True)) {
    refuse(what, "kvmesh computes no gradients: call it under torch.no_grad()");
  }
  if (torch.is_neg(tensor).is(Py_True)) {
    refuse(what, "its negative bit is set: pass tensor.resolve_neg()");
  }
}

nb::object exported(nb::handle object) {
  const Torch* const torch = torch_of(object);
  if (torch == nullptr) return nb::borrow(object);
  try {
    return torch->to_dlpack(object);
  } catch (const nb::python_error&) {  // a sparse one
    return nb::borrow(object);
  }
}

template <class Array>
bool take(nb::handle object, Array& array) {
  if (nb::try_cast(exported(object), array, false)) return true;
  // ml_dtypes' bfloat16: numpy exports no such type.
  if (!nb::hasattr(object, "view") || !nb::hasattr(object, "dtype")) return false;
  if (!nb::str(object.attr("dtype")).equal(nb::str("bfloat16"))) return false;
  return nb::try_cast(call(object.attr("view"), "uint16"), array, false);
}

}  // namespace

nb::object from_arrays(const char* name) {
  return nb::module_::import_("kvmesh._arrays").attr(name);
}

Tensor input(nb::handle object, const char* what) {
  Tensor tensor;
  if (const Torch* torch = torch_of(object)) refuse_more_than_elements(*torch, object, what);
  if (!take(object, tensor.readable)) refuse(what, "not a tensor that DLPack can pass on");
  tensor.view = view_of(tensor.readable, what);
  return tensor;
}

Tensor output(nb::handle object, const char* what) {
  Tensor tensor;
  if (!take(object, tensor.writable)) refuse(what, "not a writable tensor that DLPack can pass on");
  tensor.view = view_of(tensor.writable, what);
  return tensor;
}

std::optional<GpuNumbers> numbers_on_gpu(nb::handle object, const char* what) {
  if (!nb::hasattr(object, "__dlpack_device__")) return std::nullopt;
  const nb::object device = call(object.attr("__dlpack_device__"));
  if (nb::cast<int>(device[0]) != nb::device::cuda::value) return std::nullopt;
  GpuNumbers numbers{.array = {}, .device = {DeviceKind::kCuda, nb::cast<int>(device[1])}};
  if (!nb::try_cast(exported(object), numbers.array, false)) {
    refuse(what, "an array on a GPU must be contiguous and hold int32");
  }
  return numbers;
}

Stream stream_of(nb::handle object, Device device) {
  if (device.kind == DeviceKind::kCpu) return {};
  nb::object stream = nb::borrow(object);
  if (stream.is_none()) {
    if (!is_loaded("torch")) return {};
    stream = call(nb::module_::import_("torch").attr("cuda").attr("current_stream"), device.index);
  }
  for (const char* attribute : {"cuda_stream", "ptr"}) {
    if (nb::hasattr(stream, attribute)) stream = stream.attr(attribute);
  }
  return {reinterpret_cast<void*>(nb::cast<std::uintptr_t>(stream))};
}

nb::object make_array(nb::handle like, std::initializer_list<std::int64_t> shape, bool float32) {
  nb::list extents;
  for (std::int64_t extent : shape) extents.append(extent);
  // A function of Python takes longer than the rest of this call, so torch and numpy need none.
  if (!float32) {
    if (const Torch* torch = torch_of(like)) return torch->new_empty(like, nb::tuple(extents));
    if (const Numpy* numpy = numpy_of(like)) {
      return numpy->empty(nb::tuple(extents), like.attr("dtype"));
    }
  }
  return call(from_arrays("empty"), like, nb::tuple(extents), float32);
}

}  // namespace kvmesh::python
