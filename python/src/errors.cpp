// kvmesh's errors as the classes of kvmesh/errors.py, one for each code.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "python/src/bindings.hpp"

namespace kvmesh::python {
namespace {

void add_details(nb::object& made, const Error& error) {
  if (const auto* pages = dynamic_cast<const OutOfPages*>(&error)) {
    made.attr("asked_pages") = pages->asked_pages();
    made.attr("free_pages_per_rank") = pages->free_pages_per_rank();
  } else if (const auto* timeout = dynamic_cast<const Timeout*>(&error)) {
    std::vector<int> late;
    for (Rank rank : timeout->late()) late.push_back(rank.value);
    made.attr("waiter") = timeout->waiter().value;
    made.attr("late") = late;
    made.attr("operation") = timeout->operation();
  } else if (const auto* lost = dynamic_cast<const PeerLost*>(&error)) {
    made.attr("peer") = lost->peer().value;
    made.attr("operation") = lost->operation();
  }
}

void raise(const Error& error) {
  const nb::object by_code = nb::module_::import_("kvmesh.errors").attr("BY_CODE");
  const nb::object type = by_code[nb::int_(static_cast<int>(error.code()))];
  nb::object made = type(error.what());
  add_details(made, error);
  PyErr_SetObject(type.ptr(), made.ptr());
}

}  // namespace

void bind_errors(nb::module_&) {
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const Error& error) {
      raise(error);
    }
  });
}

}  // namespace kvmesh::python
