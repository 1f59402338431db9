// Closable objects whose end takes long, as that of a cache that waits for peers: for
// test_threads.py.
#include <nanobind/nanobind.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "python/src/closable.hpp"

namespace {

namespace nb = nanobind;
using kvmesh::python::Closable;
using kvmesh::python::Gate;

std::atomic<int> begun{0}, ended{0};

void sleep(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

struct EndSlowly {
  void operator()(const double* seconds) const {
    ++begun;
    sleep(*seconds);
    delete seconds;
    ++ended;
  }
};
using Slow = std::unique_ptr<double, EndSlowly>;

/// Stands for a mesh, on which objects are made.
struct Owner {
  std::shared_ptr<Gate> gate = std::make_shared<Gate>();
};

}  // namespace

NB_MODULE(closables, module) {
  nb::class_<Owner>(module, "Owner").def(nb::init<>());
  nb::class_<Closable<Slow>> slow(module, "Slow");
  slow.def("__init__",
           [](Closable<Slow>* self, const Owner& owner, double seconds) {
             new (self) Closable<Slow>(Slow(new double(seconds)), owner.gate);
           })
      .def("look", [](Closable<Slow>& self) { return *self.get(); })
      .def("work", [](Closable<Slow>& self, double seconds) {
        const auto use = self.use();
        const kvmesh::python::WithoutPythonsLock others_run;
        sleep(seconds);
      });
  kvmesh::python::make_closable(slow);
  module.def(
      "begun", [] { return begun.load(); }, "How many objects have begun to end so far.");
  module.def(
      "ended", [] { return ended.load(); }, "How many objects have ended so far.");
}
