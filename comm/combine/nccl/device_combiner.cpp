// The public combine on GPUs: the way over NCCL.
#include "comm/combine/nccl/nccl_way.hpp"

namespace kvmesh {

DeviceCombiner::DeviceCombiner(NcclGroup& group) : way_(make_nccl_way(group)) {}
DeviceCombiner::~DeviceCombiner() = default;
DeviceCombiner::DeviceCombiner(DeviceCombiner&&) noexcept = default;
DeviceCombiner& DeviceCombiner::operator=(DeviceCombiner&&) noexcept = default;

void DeviceCombiner::plan(std::int64_t tokens, std::int64_t heads, std::int64_t v_dim,
                          const CombineOptions& options, Stream stream) {
  way_->plan({.tokens = tokens, .heads = heads, .dim = v_dim}, options, stream);
}

void DeviceCombiner::run(const Partial& mine, const CombineOutput& output, Stream stream) {
  way_->check_run(mine, output);
  way_->run(mine, output, stream);
}

std::uint64_t DeviceCombiner::generation() const { return way_->generation(); }
CombineStrategy DeviceCombiner::strategy() const { return way_->strategy(); }
std::size_t DeviceCombiner::workspace_bytes() const { return way_->workspace_bytes(); }

}  // namespace kvmesh
