// Copy on write across ranks: the page's tokens travel through the kv communicator.
#include "runtime/cache_state.hpp"

namespace kvmesh {
namespace {

// The bytes of the first `tokens` tokens of a page, of all heads, K and V of every layer.
class PageBytes {
 public:
  PageBytes(const PoolStorage& pools, std::int32_t page, std::int64_t tokens) {
    for (int layer = 0; layer < pools.layers(); ++layer) {
      const KvPool pool = pools.layer(layer);
      for (const TensorView& half : {pool.k, pool.v}) add(half, page, tokens);
    }
  }

  std::size_t size() const {
    std::size_t sum = 0;
    for (const auto& run : runs_) sum += run.size();
    return sum;
  }
  void read(std::byte* to) const {
    for (const auto& run : runs_) {
      copy_bytes(to, run.data(), run.size());
      to += run.size();
    }
  }
  void write(const std::byte* from) const {
    for (const auto& run : runs_) {
      copy_bytes(run.data(), from, run.size());
      from += run.size();
    }
  }

 private:
  void add(const TensorView& half, std::int32_t page, std::int64_t tokens) {
    const std::size_t element = size_bytes(half.dtype);
    for (std::int64_t head = 0; head < half.size(1); ++head) {
      const std::int64_t first = page * half.stride(0) + head * half.stride(1);
      runs_.emplace_back(
          static_cast<std::byte*>(half.data) + static_cast<std::size_t>(first) * element,
          static_cast<std::size_t>(tokens * half.size(3)) * element);
    }
  }

  std::vector<std::span<std::byte>> runs_;
};

// What this rank sends to, and gets from, each other rank; pages in the order of the copies.
struct Parcel {
  std::vector<PageBytes> pages;
  std::vector<std::byte> bytes;

  std::size_t size() const {
    std::size_t sum = 0;
    for (const PageBytes& page : pages) sum += page.size();
    return sum;
  }
};

void exchange(Communicator& kv, std::vector<Parcel>& outgoing, std::vector<Parcel>& incoming) {
  std::vector<Outgoing> sends;
  std::vector<Incoming> receives;
  for (std::size_t peer = 0; peer < outgoing.size(); ++peer) {
    const Rank rank{static_cast<std::int32_t>(peer)};
    outgoing[peer].bytes.resize(outgoing[peer].size());
    incoming[peer].bytes.resize(incoming[peer].size());
    std::byte* to = outgoing[peer].bytes.data();
    for (const PageBytes& page : outgoing[peer].pages) {
      page.read(to);
      to += page.size();
    }
    if (!outgoing[peer].pages.empty()) sends.push_back({rank, outgoing[peer].bytes});
    if (!incoming[peer].pages.empty()) receives.push_back({rank, incoming[peer].bytes});
  }
  kv.exchange(sends, receives, "copy_on_write");
  for (const Parcel& parcel : incoming) {
    const std::byte* from = parcel.bytes.data();
    for (const PageBytes& page : parcel.pages) {
      page.write(from);
      from += page.size();
    }
  }
}

}  // namespace

void copy_on_write(Backend& backend, const PoolStorage& pools, Communicator& kv,
                   std::span<const PageCopy> copies) {
  if (copies.empty()) return;
  backend.settle();  // the pages to copy may still be written
  const Rank me = kv.rank();
  std::vector<LocalPageCopy> local;
  std::vector<Parcel> outgoing(static_cast<std::size_t>(kv.size()));
  std::vector<Parcel> incoming(static_cast<std::size_t>(kv.size()));
  bool remote = false;
  for (const PageCopy& copy : copies) {
    const Rank from = copy.source.rank(), to = copy.destination.rank();
    if (from == me && to == me) {
      local.push_back({copy.source.index(), copy.destination.index(), copy.tokens});
    } else if (from == me) {
      outgoing[static_cast<std::size_t>(to.value)].pages.emplace_back(pools, copy.source.index(),
                                                                      copy.tokens);
    } else if (to == me) {
      incoming[static_cast<std::size_t>(from.value)].pages.emplace_back(
          pools, copy.destination.index(), copy.tokens);
    }
    remote |= from != to;
  }
  for (int layer = 0; layer < pools.layers() && !local.empty(); ++layer) {
    backend.copy_pages(pools.layer(layer), local);
  }
  if (remote) exchange(kv, outgoing, incoming);
}

}  // namespace kvmesh
