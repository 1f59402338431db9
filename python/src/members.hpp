// Options that come as a dict.
#pragma once

#include <string>

#include "python/src/bindings.hpp"

namespace kvmesh::python {

/// The members of a dict, by name; each is taken once.
class Members {
 public:
  explicit Members(nb::handle of) { left_.update(nb::cast<nb::dict>(of)); }

  template <class T>
  void read(const char* name, T& value) {
    if (const nb::object given = take(name); !given.is_none()) value = nb::cast<T>(given);
  }
  nb::object take(const char* name) { return nb::object(left_.attr("pop")(name, nb::none())); }
  /// @throws TypeError if a member was not read.
  void done(const char* what) const {
    if (left_.size() == 0) return;
    throw nb::type_error(
        (std::string("a ") + what + " has no " + nb::cast<std::string>(nb::str(left_.keys())))
            .c_str());
  }

 private:
  nb::dict left_;
};

}  // namespace kvmesh::python
