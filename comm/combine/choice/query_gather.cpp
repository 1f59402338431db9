#include "comm/combine/choice/query_gather.hpp"

namespace kvmesh {

void QueryGather::run(const QueryShares& queries, Stream stream) {
  if (queries.all.elements() == 0) return;
  const CombineMeans means = ways_.means();
  if (means.ranks == 1) return queries.place_mine(queries.heads_of(0, 1), stream);
  const CombineShape rows{queries.all.size(0), queries.all.size(1), queries.all.size(2)};
  const WayKind kind = choose_gather_way(means, rows, queries.all.dtype, asked_);
  std::unique_ptr<GatherWay>& way = made_[static_cast<std::size_t>(kind)];
  if (!way) way = ways_.make_gather(kind);
  way->set_layer(layer_);
  way->run(queries, stream);
}

template <class Number>
auto QueryGather::sum(const Number& number) const {
  decltype(number(*made_[0])) sum = 0;
  for (const auto& way : made_) sum += way ? number(*way) : 0;
  return sum;
}

std::uint64_t QueryGather::generation() const {
  return sum([](const GatherWay& way) { return way.generation(); });
}
std::size_t QueryGather::workspace_bytes() const {
  return sum([](const GatherWay& way) { return way.workspace_bytes(); });
}
std::size_t QueryGather::host_bytes() const {
  return sum([](const GatherWay& way) { return way.host_bytes(); });
}

}  // namespace kvmesh
