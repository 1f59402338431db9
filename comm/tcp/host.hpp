// Rank 0's side of the rendezvous.
#pragma once

#include <string_view>

#include "comm/tcp/links.hpp"
#include "kvmesh/tcp.hpp"

namespace kvmesh::tcp {

class Host {
 public:
  Host(const TcpOptions& options, Links& links, const Waiting& waiting);

  /// Waits for all ranks and tells each where the others are. If that cannot be, everyone who came
  /// learns the reason, too.
  void gather();

 private:
  bool all_are_here();
  void forget_who_left();
  void admit(Guest guest);
  std::string complaint_about(const Hello& hello) const;
  std::vector<Rank> missing() const;
  void tell(Rank rank, Say say, std::string_view payload);
  void tell_everyone(Say say, std::string_view payload);
  void say_farewell(Say say, std::string_view payload);

  const TcpOptions* options_;
  Links* links_;
  const Waiting* waiting_;
  Reception reception_;
  std::vector<Address> table_;  // [rank]
};

}  // namespace kvmesh::tcp
