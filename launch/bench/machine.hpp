// A rank's device for a benchmark: a clock, ceilings, data.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvmesh/attention.hpp"
#include "kvmesh/mesh.hpp"
#include "kvmesh/stream.hpp"
#include "launch/bench/fill_pattern.hpp"

namespace kvmesh::bench {

/// Enqueues call number `call` of an operation on a stream; on the CPU it runs the call.
using Work = std::function<void(int call, Stream stream)>;

/// The operation that is timed as a whole: calls 0 .. calls - 1.
struct Repeated {
  Work work{};
  int calls = 1;
  bool capturable = true;  ///< in a CUDA graph
  /// The host's work before each turn, untimed; what it gives to the stream is not timed either.
  std::function<void(Stream stream)> prepare{};
};

/// The clock of a row.
enum class Timing : std::uint8_t {
  kGraph,   ///< events around a replayed CUDA graph: the host's time does not count
  kStream,  ///< events around work that the host gives to the stream meanwhile
  kHost,    ///< the host's clock around work that is done when the call returns
};
std::string_view name(Timing timing);

/// Seconds per call on this rank, one number per turn.
struct Turns {
  std::vector<double> operation{};
  std::vector<std::vector<double>> ceilings{};  ///< in their order
  Timing timing = Timing::kHost;
};

/// A ceiling: the time of a call that only moves `amount` bytes or does this many operations.
struct Ceiling {
  std::string name{};
  double amount = 0;
  Repeated repeated{};
  bool as_often = false;  ///< called as often per turn as the operation; else once
};

/// The data that attention over a layer moves on this rank.
struct PageReads {
  struct Sequence {
    std::vector<std::int32_t> pages{};  ///< all full but the last
    std::int64_t tokens = 0;            ///< on these pages
  };
  std::vector<Sequence> sequences{};
  std::vector<KvPool> pools{};  ///< of each layer
  ConstTensorView q{};
  std::vector<TensorView> out{};  ///< at most two; overwritten
};

struct MachineInfo {
  std::string device;    ///< "NVIDIA H200"
  std::string driver;    ///< empty on the CPU
  std::string versions;  ///< of what it was built with, for a person
};

class Machine {
 public:
  virtual ~Machine() = default;

  /// Measures `turns` turns: the operation, then the ceilings; on a GPU without a wait of the host
  /// between them. `align`, if given, runs before each operation, untimed: it brings the ranks'
  /// devices together, so that no rank's time includes a wait for another rank's ceiling. It comes
  /// after the operation's `prepare`.
  /// Collective over the mesh.
  virtual Turns time(const Repeated& operation, std::span<const Repeated> ceilings,
                     const Work& align, int turns) = 0;

  /// Finite numbers, all different. `tensor` is contiguous, `pattern` is of its dtype.
  virtual void fill(const TensorView& tensor, const FillPattern& pattern, unsigned seed) = 0;

  /// A streaming read of memory that is in no cache.
  virtual Ceiling read() = 0;
  /// A kernel that reads the same pages once and does nothing else, with `q` and `out`; the caller
  /// fills in its amount. Returns none if the machine has no such kernel.
  virtual std::optional<Ceiling> gather([[maybe_unused]] const PageReads& reads) {
    return std::nullopt;
  }
  /// Multiply-adds from registers, of operands as in attention over `dtype`.
  virtual Ceiling multiply(Dtype dtype) = 0;
  /// A plain copy on the device.
  virtual void copy(void* to, const void* from, std::size_t size_bytes, Stream stream) = 0;
  /// Ceilings of moves: a plain copy of this many bytes within the device; and to host memory that
  /// it copies without a detour, or from it.
  virtual Ceiling copy_within(std::size_t size_bytes) = 0;
  virtual Ceiling copy_to_host(std::size_t size_bytes, bool is_back) = 0;
  /// A plain exchange among the ranks of the kv axis, between buffers in device memory.
  virtual void exchange(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                        Stream stream) = 0;
  /// Returns true if exchanges among the ranks of the kv axis can be captured.
  virtual bool captures_exchange() = 0;
  /// Returns true if a combine of this way can be captured; empty: the way that the cache chooses.
  virtual bool captures_combine(std::optional<WayKind> way) = 0;

  /// Waits, after this much memory was freed, until the machine is as fast as before.
  virtual void cool_down([[maybe_unused]] std::int64_t freed_bytes) {}

  /// The amount of data that exceeds every cache.
  virtual std::int64_t rotate_bytes() const = 0;
  /// The memory that this rank may use.
  virtual std::int64_t memory_bytes() const = 0;
  /// The shortest time of a turn that the clock measures well enough.
  virtual double turn_seconds() const = 0;
  virtual MachineInfo info() const = 0;
};

/// With `rotate_bytes` 0 the device's caches decide.
std::unique_ptr<Machine> make_machine(Mesh& mesh, std::int64_t rotate_bytes);
std::unique_ptr<Machine> make_cpu_machine(Mesh& mesh, std::int64_t rotate_bytes);
/// @throws Unsupported in a build without CUDA.
std::unique_ptr<Machine> make_gpu_machine(Mesh& mesh, std::int64_t rotate_bytes);

}  // namespace kvmesh::bench
