// In place of peer_window.cpp, peer_way.cpp and peer_gather.cpp in a build without CUDA.
#include "comm/combine/gather/gather_way.hpp"
#include "comm/combine/peer/peer_way.hpp"

namespace kvmesh {

struct PeerWindow::Fault {};

PeerWindow::Made PeerWindow::make(Communicator&, Device, std::size_t) {
  throw Unsupported("windows: this build of kvmesh has no CUDA");
}
PeerWindow::~PeerWindow() = default;
void PeerWindow::check(std::string_view) {}
void PeerWindow::wait(Stream, std::string_view) {}

std::unique_ptr<CombineWay> make_peer_way(PeerWindow&, std::optional<RowForm>) {
  throw Unsupported("peer combine: this build of kvmesh has no CUDA");
}

std::unique_ptr<GatherWay> make_peer_gather(PeerWindow&, std::optional<RowForm>) {
  throw Unsupported("gather_queries: this build of kvmesh has no CUDA");
}

}  // namespace kvmesh
