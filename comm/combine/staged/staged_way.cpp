#include "comm/combine/staged/staged_way.hpp"

namespace kvmesh {

void StagedWay::check_run(const Partial& mine, const CombineOutput& output) const {
  on_host_.check_run(mine, output, group_->device().kind);
}

void StagedWay::run(const Partial& mine, const CombineOutput& output, Stream stream) {
  constexpr std::string_view kOperation = "combine";
  const Partial partial{o_.of(mine.o), lse_.of(mine.lse)};
  CombineOutput result{.o = out_o_.of(output.o)};
  if (!output.lse.empty()) result.lse = out_lse_.of(output.lse);

  group_->wait(stream, kOperation);
  o_.download();
  lse_.download();
  group_->wait({}, kOperation);
  on_host_.run(partial, result, {});
  out_o_.upload();
  if (!output.lse.empty()) out_lse_.upload();
  group_->wait({}, kOperation);
}

}  // namespace kvmesh
