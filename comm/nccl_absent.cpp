// In place of nccl_group.cpp, nccl/state.cpp, combine/nccl/{nccl_way,row_transfer}.cpp and
// combine/gather/nccl_gather.cpp in a build without NCCL.
#include "comm/combine/gather/gather_way.hpp"
#include "comm/combine/nccl/nccl_way.hpp"
#include "comm/combine/nccl/row_transfer.hpp"

namespace kvmesh {
namespace {

[[noreturn]] void throw_absent() { throw Unsupported("this build of kvmesh has no NCCL"); }

}  // namespace

struct NcclGroup::State {};

std::string nccl_version() { return {}; }
NcclUniqueId make_nccl_unique_id() { throw_absent(); }

NcclGroup::NcclGroup(Communicator&, int) { throw_absent(); }
NcclGroup::NcclGroup(const NcclUniqueId&, Rank, int, int, std::chrono::milliseconds) {
  throw_absent();
}
NcclGroup NcclGroup::borrow(void*, std::chrono::milliseconds) { throw_absent(); }
NcclGroup::~NcclGroup() = default;
NcclGroup::NcclGroup(NcclGroup&&) noexcept = default;
NcclGroup& NcclGroup::operator=(NcclGroup&&) noexcept = default;
Rank NcclGroup::rank() const { throw_absent(); }
int NcclGroup::size() const { throw_absent(); }
int NcclGroup::device() const { throw_absent(); }
bool NcclGroup::is_owned() const { throw_absent(); }
void* NcclGroup::handle() const { throw_absent(); }
std::chrono::milliseconds NcclGroup::deadline() const { throw_absent(); }
void NcclGroup::set_deadline(std::chrono::milliseconds) { throw_absent(); }
void NcclGroup::set_names(std::vector<Rank>) { throw_absent(); }
void NcclGroup::wait(Stream, std::string_view) { throw_absent(); }
void NcclGroup::wait_until(const std::function<bool()>&, std::string_view) { throw_absent(); }
void NcclGroup::close() { throw_absent(); }

std::unique_ptr<CombineWay> make_nccl_way(NcclGroup&, std::vector<Rank>) { throw_absent(); }
std::unique_ptr<GatherWay> make_nccl_gather(NcclGroup&) { throw_absent(); }
void transfer_rows(NcclGroup::State&, std::span<const Rank>, const DeviceCombinePlan&, const float*,
                   float*, Stream, std::string_view) {
  throw_absent();
}

}  // namespace kvmesh
