#include "comm/combine/staged/staged_way.hpp"

namespace kvmesh {

void StagedWay::check_run(const Partial& mine, const CombineOutput& output) const {
  on_host_.check_run(mine, output, group_->device().kind);
}

void StagedWay::run(const Partial& mine, const CombineOutput& output, Stream stream) {
  constexpr std::string_view kOperation = "combine";
  CombineOutput result{.o = out_o_.like(output.o)};
  if (!output.lse.empty()) result.lse = out_lse_.like(output.lse);

  group_->wait(stream, kOperation);
  const Partial partial{o_.download(mine.o), lse_.download(mine.lse)};
  group_->wait({}, kOperation);
  on_host_.run(partial, result, {});
  out_o_.upload(output.o);
  if (!output.lse.empty()) out_lse_.upload(output.lse);
  group_->wait({}, kOperation);
}

}  // namespace kvmesh
