// The state that an ExternalPool and its plans share.
#pragma once

#include <memory>

#include "kvmesh/external_pool.hpp"
#include "runtime/external/page_units.hpp"
#include "runtime/external/table_batch.hpp"
#include "runtime/external/table_reader.hpp"
#include "runtime/step/backend.hpp"
#include "runtime/step/plan_agreement.hpp"

namespace kvmesh {

class ExternalPool::State {
 public:
  /// @throws InvalidArgument.
  State(Mesh owner, const ConstKvPool& layer, const ExternalPoolOptions& options);

  /// Waits for the device's work if a peer could be in the middle of it: see KvCache::State.
  void wait_for_peers() {
    if (mesh.kv_parallel() > 1) backend->wait_idle();
  }
  /// Calls wait_for_peers before memory is freed, and drops the errors.
  void let_go() noexcept;
  /// @throws InvalidArgument unless `pool` has the form that plans are for.
  void check_form(const KvPool& pool) const;
  /// Returns the rules for tables: for token lists those whose units are tokens, else `rules`.
  /// @throws InvalidArgument if strides do not let tokens be pages.
  TableRules rules_for(const PageTables& tables) const;
  Backend& backend_for(const PageTables& tables);

  Mesh mesh;         // shared with the caller's, which may move or end
  ConstKvPool form;  // whose memory is never read
  TableRules rules;
  AttentionShape shape;
  KvFormat format;
  std::unique_ptr<Backend> backend;
  /// For plans with token lists, whose pages are others; made when it is needed.
  std::unique_ptr<Backend> token_backend;
  PlanHistory history;  // of all plans and replans
  TableReader reader;
};

}  // namespace kvmesh
