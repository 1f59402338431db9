// Rank 0's side of the rendezvous.
#pragma once

#include <string_view>

#include "comm/tcp/links.hpp"
#include "kvmesh/tcp.hpp"

namespace kvmesh::tcp {

class Host {
 public:
  Host(const TcpOptions& options, Links& links, const Waiting& waiting);

  /// Waits for all ranks and sends each the addresses of the others. A rank that does not fit (its
  /// number, or its job's size) is refused, and the others are waited for all the same. If rank 0
  /// gives up, all ranks that came learn the reason.
  /// @throws Timeout, PeerLost.
  void gather();

 private:
  bool all_are_here();
  void forget_who_left();
  void forget(Rank rank);
  void admit(Guest guest);
  std::string complaint_about(const Claim& claim) const;
  void refuse(Guest guest, const std::string& reason);
  std::vector<Rank> missing() const;
  void tell(Rank rank, Say say, std::string_view payload);
  void tell_everyone(Say say, std::string_view payload);
  void say_farewell(Say what, std::string_view payload);

  const TcpOptions* options_;
  Links* links_;
  const Waiting* waiting_;
  Reception reception_;
  std::vector<Address> table_;                          // [rank]
  std::vector<std::optional<Clock::time_point>> left_;  // [rank], when it was found to have left
};

}  // namespace kvmesh::tcp
