#include "runtime/mesh/mesh_agreement.hpp"

#include <algorithm>
#include <array>
#include <string_view>

#include "comm/launcher/environment.hpp"
#include "core/check.hpp"
#include "core/hash.hpp"

namespace kvmesh {
namespace {

constexpr std::array<std::string_view, 6> kFields{
    "head_parallel",          "makes_nccl",
    "peer_window_bytes",      "the kind of the device",
    "the membership's epoch", "the hash of the membership's holders"};

std::int64_t hash_of(const Membership& members) {
  Hash hash;
  for (PageRank pages{0}; pages.value < members.size(); ++pages.value) {
    hash.add(members.holder(pages).value);
  }
  return static_cast<std::int64_t>(hash.value());
}

// The message of each rank. Trivially copyable.
struct Proposal {
  std::array<std::int64_t, kFields.size()> fields{};
  std::uint64_t host = 0;
  bool refused = false;
  std::array<char, 256> reason{};
};

void set_reason(Proposal& proposal, const std::exception_ptr& refusal) {
  proposal.refused = true;
  try {
    std::rethrow_exception(refusal);
  } catch (const std::exception& error) {
    const std::string_view why = error.what();
    std::copy_n(why.begin(), std::min(why.size(), proposal.reason.size() - 1),
                proposal.reason.begin());
  }
}

}  // namespace

std::vector<std::uint64_t> agree_on_mesh(Communicator& world, const MeshOptions& options,
                                         const Membership& members, Device device,
                                         const std::exception_ptr& refusal) {
  Proposal mine{.fields = {options.head_parallel, options.makes_nccl,
                           static_cast<std::int64_t>(options.peer_window_bytes),
                           static_cast<int>(device.kind),
                           static_cast<std::int64_t>(members.epoch()), hash_of(members)},
                .host = Hash().add_all(host_name()).value()};
  if (refusal) set_reason(mine, refusal);
  const std::vector<Proposal> all = all_gather_value(world, mine, "agree on a mesh");
  if (refusal) std::rethrow_exception(refusal);
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    require(!all[rank].refused, "mesh: rank {} refused: {}", rank, all[rank].reason.data());
  }
  for (std::size_t rank = 1; rank < all.size(); ++rank) {
    for (std::size_t i = 0; i < kFields.size(); ++i) {
      const std::int64_t first = all[0].fields[i], other = all[rank].fields[i];
      require(first == other, "mesh: {} is {} on rank 0 and {} on rank {}: it must be the same",
              kFields[i], first, other, rank);
    }
  }
  std::vector<std::uint64_t> hosts;
  for (const Proposal& rank : all) hosts.push_back(rank.host);
  return hosts;
}

}  // namespace kvmesh
