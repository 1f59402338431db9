// Options that come as Python objects.
#pragma once

#include <string>

#include "python/src/bindings.hpp"

namespace kvmesh::python {

/// @throws TypeError with what is wanted and what was given.
[[noreturn]] inline void refuse(const std::string& wanted, nb::handle given) {
  throw nb::type_error((wanted + ", not " + nb::repr(given).c_str()).c_str());
}

/// Returns an option's value. @throws TypeError if it is of another type.
template <class T>
T value_of(nb::handle given, const std::string& name) {
  T value{};
  if (!nb::try_cast(given, value)) refuse(name + " has no such value", given);
  return value;
}

/// The members of a dict, by name; each is taken once.
class Members {
 public:
  /// `what` is for errors. @throws TypeError if `of` is no dict.
  Members(nb::handle of, const char* what) : what_(what) {
    if (!nb::isinstance<nb::dict>(of)) refuse("a " + what_ + " is a dict", of);
    left_.update(nb::borrow<nb::dict>(of));
  }

  /// @throws TypeError if the member is of another type.
  template <class T>
  void read(const char* name, T& value) {
    if (const nb::object given = take(name); !given.is_none()) {
      value = value_of<T>(given, "a " + what_ + ": " + name);
    }
  }
  nb::object take(const char* name) { return nb::object(left_.attr("pop")(name, nb::none())); }
  /// @throws TypeError if a member was not read.
  void done() const {
    if (left_.size() == 0) return;
    throw nb::type_error(
        ("a " + what_ + " has no " + nb::cast<std::string>(nb::str(left_.keys()))).c_str());
  }

 private:
  std::string what_;
  nb::dict left_;
};

}  // namespace kvmesh::python
