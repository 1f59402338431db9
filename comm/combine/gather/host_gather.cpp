// The query gather by way of host memory.
#include <vector>

#include "comm/combine/gather/gather_way.hpp"
#include "comm/combine/host/row_exchange.hpp"
#include "comm/combine/staged/host_copy.hpp"
#include "core/tensors/copy_tensor.hpp"

namespace kvmesh {
namespace {

/// The queries of some heads in one piece, in a message.
TensorView in_message(RowBuffer& message, const TensorView& like, IndexRange heads) {
  constexpr auto kFloat = static_cast<std::int64_t>(sizeof(float));
  const std::int64_t tokens = like.size(0), dim = like.size(2);
  const std::int64_t bytes =
      tokens * heads.size() * dim * static_cast<std::int64_t>(size_bytes(like.dtype));
  return {message.resize((bytes + kFloat - 1) / kFloat), like.dtype, {tokens, heads.size(), dim}};
}

/// It uses the memory of the combine's row exchange, which the combine counts.
class HostGather : public GatherWay {
 public:
  explicit HostGather(std::shared_ptr<RowExchange> rows) : rows_(std::move(rows)) {}

  void run(const QueryShares& queries, Stream) override;

 private:
  std::shared_ptr<RowExchange> rows_;
};

void HostGather::run(const QueryShares& given, Stream) {
  const QueryShares queries = given.of_batch();
  const auto heads_of = [&](int rank) { return queries.heads_of(rank, rows_->ranks()); };
  const int me = rows_->rank();
  copy_tensor(in_message(rows_->merged(), queries.all, heads_of(me)), queries.mine, {});
  std::vector<TensorView> received;
  for (int peer = 0; peer < rows_->ranks(); ++peer) {
    received.push_back(in_message(rows_->incoming(peer), queries.all, heads_of(peer)));
  }
  rows_->identify(queries.digest);
  rows_->send_to_all(rows_->merged(), kGatherQueries);
  queries.place_mine(heads_of(me), {});
  for (int peer = 0; peer < rows_->ranks(); ++peer) {
    if (peer == me) continue;
    copy_tensor(queries.place_of(heads_of(peer)), received[static_cast<std::size_t>(peer)], {});
  }
}

class StagedGather : public GatherWay {
 public:
  StagedGather(DeviceGroup& group, std::shared_ptr<RowExchange> rows)
      : group_(&group), on_host_(std::move(rows)) {}

  void run(const QueryShares& queries, Stream stream) override;
  std::size_t host_bytes() const override { return mine_.held_bytes() + all_.held_bytes(); }

 private:
  DeviceGroup* group_;
  HostGather on_host_;
  HostCopy mine_, all_;
};

void StagedGather::run(const QueryShares& given, Stream stream) {
  const QueryShares queries = given.of_batch();
  QueryShares there = queries;
  there.all = all_.like(queries.all);
  group_->wait(stream, kGatherQueries);
  there.mine = mine_.download(queries.mine);
  group_->wait({}, kGatherQueries);
  on_host_.run(there, {});
  all_.upload(queries.all);
  group_->wait({}, kGatherQueries);
}

}  // namespace

std::unique_ptr<GatherWay> make_host_gather(std::shared_ptr<RowExchange> rows) {
  return std::make_unique<HostGather>(std::move(rows));
}

std::unique_ptr<GatherWay> make_staged_gather(DeviceGroup& group,
                                              std::shared_ptr<RowExchange> rows) {
  return std::make_unique<StagedGather>(group, std::move(rows));
}

}  // namespace kvmesh
