// In place of nccl_*.cpp and device_combine.cpp in a build without NCCL.
#include "kvmesh/nccl.hpp"

namespace kvmesh {
namespace {

[[noreturn]] void throw_absent() { throw Unsupported("this build of kvmesh has no NCCL"); }

}  // namespace

struct NcclGroup::State {};
class DeviceCombiner::Work {};

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
void NcclGroup::wait(Stream, std::string_view) { throw_absent(); }
void NcclGroup::wait_until(const std::function<bool()>&, std::string_view) { throw_absent(); }
void NcclGroup::close() { throw_absent(); }

DeviceCombiner::DeviceCombiner(NcclGroup&) { throw_absent(); }
DeviceCombiner::~DeviceCombiner() = default;
DeviceCombiner::DeviceCombiner(DeviceCombiner&&) noexcept = default;
DeviceCombiner& DeviceCombiner::operator=(DeviceCombiner&&) noexcept = default;
void DeviceCombiner::plan(std::int64_t, std::int64_t, std::int64_t, const CombineOptions&, Stream) {
  throw_absent();
}
void DeviceCombiner::run(const Partial&, const CombineOutput&, Stream) { throw_absent(); }
std::uint64_t DeviceCombiner::generation() const { throw_absent(); }
CombineStrategy DeviceCombiner::strategy() const { throw_absent(); }
std::size_t DeviceCombiner::workspace_bytes() const { throw_absent(); }

}  // namespace kvmesh
