// The peer way where the rows fit into the windows, else another way.
#pragma once

#include <memory>

#include "comm/combine/combine_way.hpp"
#include "comm/combine/peer/peer_window.hpp"

namespace kvmesh {

/// The ways' results are on the device of the windows. REQUIRES: the windows outlive it, and are of
/// the ranks of `other`.
class FittingWay final : public CombineWay {
 public:
  FittingWay(PeerWindow& window, std::unique_ptr<CombineWay> other);

  WayKind kind() const override { return way_->kind(); }
  void plan(const CombineShape& shape, const CombineOptions& options, Stream stream) override;
  void set_layer(int layer) override { way_->set_layer(layer); }
  void check_run(const Partial& mine, const CombineOutput& output) const override {
    way_->check_run(mine, output);
  }
  void run(const Partial& mine, const CombineOutput& output, Stream stream) override {
    way_->run(mine, output, stream);
  }
  CombineStrategy strategy() const override { return way_->strategy(); }
  std::uint64_t generation() const override {
    return changes_ + by_peer_->generation() + other_->generation();
  }
  std::size_t workspace_bytes() const override {
    return by_peer_->workspace_bytes() + other_->workspace_bytes();
  }
  std::size_t host_bytes() const override { return by_peer_->host_bytes() + other_->host_bytes(); }

 private:
  PeerWindow& window_;
  std::unique_ptr<CombineWay> by_peer_, other_;
  CombineWay* way_;  // of the last plan
  std::uint64_t changes_ = 0;
};

}  // namespace kvmesh
