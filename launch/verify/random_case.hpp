// The operations of a small serving engine, drawn from a seed; every number is checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvmesh/mesh.hpp"
#include "launch/verify/case_rules.hpp"
#include "launch/verify/findings.hpp"
#include "launch/verify/random_moves.hpp"

namespace kvmesh::verify {

struct CaseResult {
  std::string description;  ///< the sizes, for a failure's message
  std::int64_t steps = 0;
  Findings findings;                   ///< findings of this rank
  std::vector<std::string> kernels{};  ///< KvCache::kernel_programs of this rank's cache
  MovedPages moved{};                  ///< between ranks
};

/// Runs cases on the ranks of a mesh, in every arrangement kv_parallel x head_parallel of them that
/// a seed may choose. A case creates, forks, truncates and erases sequences and runs steps over
/// random batches of them: prefill, decode, several queries, draft trees of which some tokens are
/// kept, any mods, dtypes and scatters, in pools that are small enough to run out. Some plans have
/// limits. Some steps run by page tables, in a third of the cases over pages of an engine's own
/// form and ownership, and some of these with token lists. On several ranks pages move in half of
/// the cases, mostly beside the steps, and some ranks are emptied.
class CaseRunner {
 public:
  /// @throws InvalidArgument for rules that exclude each other. Collective.
  explicit CaseRunner(Mesh& mesh, const CaseRules& rules = {});

  /// Runs the case. REQUIRES: the same seed on every rank. @throws Error if kvmesh threw where it
  /// must not. Collective.
  CaseResult run(std::uint64_t seed);

 private:
  std::vector<Mesh> arrangements_;
  CaseRules rules_;
};

}  // namespace kvmesh::verify
