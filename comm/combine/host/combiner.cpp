// The public combine on the CPU: one call of the host's way.
#include "comm/combine/host/host_way.hpp"
#include "core/check.hpp"

namespace kvmesh {

Combiner::Combiner(Communicator& comm)
    : way_(std::make_unique<HostWay>(std::make_shared<RowExchange>(comm))) {}
Combiner::~Combiner() = default;
Combiner::Combiner(Combiner&&) noexcept = default;
Combiner& Combiner::operator=(Combiner&&) noexcept = default;

void Combiner::operator()(const Partial& mine, const CombineOptions& options,
                          const CombineOutput& output) {
  require(way_ != nullptr, "combine: the combiner has been moved from");
  way_->plan(shape_of(mine), options, {});
  way_->check_run(mine, output);
  way_->run(mine, output, {});
}

}  // namespace kvmesh
