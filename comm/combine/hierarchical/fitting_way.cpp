#include "comm/combine/hierarchical/fitting_way.hpp"

#include <utility>

#include "comm/combine/peer/peer_layout.hpp"
#include "comm/combine/peer/peer_way.hpp"

namespace kvmesh {

FittingWay::FittingWay(PeerWindow& window, std::unique_ptr<CombineWay> other)
    : window_(window),
      by_peer_(make_peer_way(window)),
      other_(std::move(other)),
      way_(other_.get()) {}

void FittingWay::plan(const CombineShape& shape, const CombineOptions& options, Stream stream) {
  const bool fits = fitting_layout(shape, options, window_.ranks(), window_.room()).has_value();
  CombineWay* const way = fits ? by_peer_.get() : other_.get();
  way->plan(shape, options, stream);
  if (way != way_) ++changes_;
  way_ = way;
}

}  // namespace kvmesh
