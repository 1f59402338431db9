// The ways that a combine contract runs over: a way over ranks of one kind.
//
// A suite takes a WayOver as its parameter and calls `run(body)`, as of ranks. The body calls
// `make(comm)`, which returns a rank's way with all that it needs.
#pragma once

#include <memory>
#include <optional>
#include <ostream>
#include <string>

#include "comm/combine/choice/combine_ways.hpp"
#include "tests/support/ranks.hpp"

namespace kvmesh::test {

/// The public front, planned and run like a way.
class CombinerAsWay : public CombineWay {
 public:
  explicit CombinerAsWay(Communicator& comm) : combiner_(comm) {}
  WayKind kind() const override { return WayKind::kHost; }
  void plan(const CombineShape&, const CombineOptions& options, Stream) override {
    options_ = options;
    mask_.reset();
    if (options.participation) mask_ = *options.participation;
  }
  void check_run(const Partial&, const CombineOutput&) const override {}
  void run(const Partial& mine, const CombineOutput& output, Stream) override {
    options_.participation = mask_ ? &*mask_ : nullptr;
    combiner_(mine, options_, output);
  }
  CombineStrategy strategy() const override { return options_.strategy; }
  std::uint64_t generation() const override { return 0; }
  std::size_t workspace_bytes() const override { return 0; }

 private:
  Combiner combiner_;
  CombineOptions options_;
  std::optional<Participation> mask_;
};

/// A rank's ways. The ways of one rank share the state of their group.
class WaysOfRank {
 public:
  /// The way over host memory, whatever the kind. Empty: the public Combiner.
  WaysOfRank(Communicator& comm, std::optional<WayKind> kind)
      : comm_(&comm),
        kind_(kind),
        group_(std::shared_ptr<Communicator>(&comm, [](Communicator*) {}), Device{}),
        ways_(group_),
        first_(make()) {}

  std::unique_ptr<CombineWay> make() {
    return kind_ ? ways_.make(*kind_) : std::make_unique<CombinerAsWay>(*comm_);
  }
  CombineWay& operator*() { return *first_; }

 private:
  Communicator* comm_;
  std::optional<WayKind> kind_;
  DeviceGroup group_;
  CombineWays ways_;
  std::unique_ptr<CombineWay> first_;
};

struct HostWays {
  static std::string name() { return "Host"; }
  static std::optional<WayKind> kind() { return WayKind::kHost; }
};
/// From host memory to host memory: the copies are the same as with a device.
struct StagedWays {
  static std::string name() { return "Staged"; }
  static std::optional<WayKind> kind() { return WayKind::kStaged; }
};
struct PublicCombiner {
  static std::string name() { return "Combiner"; }
  static std::optional<WayKind> kind() { return std::nullopt; }
};

/// A way over ranks of one kind.
struct WayOver {
  std::string name;
  void (*run)(const RankBody& body);
  std::optional<WayKind> kind;

  WaysOfRank make(Communicator& comm) const { return WaysOfRank(comm, kind); }
};
inline void PrintTo(const WayOver& way, std::ostream* out) { *out << way.name; }

/// A way over each kind of ranks of a testing::Types.
template <class Way, class... Ranks>
auto over_each(testing::internal::ProxyTypeList<Ranks...>) {
  return testing::Values(WayOver{Way::name() + Ranks::name(), &Ranks::run, Way::kind()}...);
}

}  // namespace kvmesh::test
