// Copy on write across ranks. The rank that holds the copy reads the page from the source's pools
// if it maps them. Otherwise the page's tokens are sent over the kv communicator.
//
//   source                            holder of the copy
//   settle                            settle             no kernel uses these pages any more
//   "ready", or the tokens  ------->                     first exchange
//                                     copy               out of the map, or of what came
//                           <-------  "done"             second exchange, only for maps
//
// The source waits for "done", because its next append may write to the page that is being read.
#include <map>
#include <ranges>
#include <vector>

#include "core/copy_rows.hpp"
#include "runtime/cache_state.hpp"

namespace kvmesh {
namespace {

// The first `tokens` tokens of a page in one plane of a layer: one row per head.
struct PageRows {
  PageRows(const TensorView& plane, std::int32_t page, std::int64_t tokens)
      : data(static_cast<std::byte*>(plane.data) + bytes(plane, page * plane.stride(0))),
        pitch(bytes(plane, plane.stride(1))),
        width(bytes(plane, tokens * plane.size(3))),
        heads(static_cast<std::size_t>(plane.size(1))),
        device(plane.device) {}

  std::size_t size() const { return width * heads; }
  void copy_from(const std::byte* from, std::size_t from_pitch) const {
    copy_rows({data, pitch, from, from_pitch, width, heads}, device);
  }
  void copy_to(std::byte* packed) const {
    copy_rows({packed, width, data, pitch, width, heads}, device);
  }

  std::byte* data;
  std::size_t pitch, width, heads;
  Device device;

 private:
  static std::size_t bytes(const TensorView& plane, std::int64_t elements) {
    return static_cast<std::size_t>(elements) * size_bytes(plane.dtype);
  }
};

// The pages that go from one rank to another, in the order of the copies.
struct Parcel {
  bool mapped = false;           // the holder of the copies reads the source's pools
  std::vector<std::byte> bytes;  // the tokens; for a mapped parcel one byte, as a signal
  std::vector<PageCopy> copies;
};
using Parcels = std::map<Rank, Parcel>;  // by the other rank

class Transfer {
 public:
  Transfer(const PoolStorage& pools, const PeerPools& peers, Communicator& kv,
           std::span<const int> layers)
      : pools_(pools), peers_(peers), kv_(kv), layers_(layers) {}

  void add(const PageCopy& copy) {
    const Rank from = copy.source.rank(), to = copy.destination.rank();
    if (from == kv_.rank()) add(outgoing_[to], copy);
    if (to == kv_.rank()) add(incoming_[from], copy);
  }

  void run(Backend& backend) {
    for (Parcel& parcel : std::views::values(outgoing_)) pack(parcel);
    backend.settle();
    exchange(outgoing_, incoming_, "copy_on_write");
    for (const auto& [source, parcel] : incoming_) {
      parcel.mapped ? pull(source, parcel) : unpack(parcel);
    }
    backend.settle();
    for (Parcels* parcels : {&outgoing_, &incoming_}) {
      std::erase_if(*parcels, [](const auto& entry) { return !entry.second.mapped; });
    }
    exchange(incoming_, outgoing_, "copy_on_write done");
  }

 private:
  void add(Parcel& parcel, const PageCopy& copy) {
    parcel.mapped = peers_.maps(copy.destination.rank(), copy.source.rank());
    parcel.bytes.resize(parcel.mapped ? 1 : parcel.bytes.size() + page_bytes(copy.tokens));
    parcel.copies.push_back(copy);
  }

  std::size_t page_bytes(int tokens) const {
    std::size_t bytes = 0;
    for_each_plane([&](int, std::size_t, const TensorView& plane) {
      bytes += PageRows(plane, 0, tokens).size();
    });
    return bytes;
  }

  // Calls `body(layer, i, plane)` with plane i of each of the layers in this rank's pools.
  template <class Body>
  void for_each_plane(const Body& body) const {
    for (const int layer : layers_) {
      const PagePlanes planes = pools_.layer(layer);
      for (std::size_t i = 0; i < planes.size(); ++i) body(layer, i, planes[i]);
    }
  }

  void pack(Parcel& parcel) const {
    if (parcel.mapped) return;
    std::byte* to = parcel.bytes.data();
    for (const PageCopy& copy : parcel.copies) {
      for_each_plane([&](int, std::size_t, const TensorView& plane) {
        const PageRows from(plane, copy.source.index(), copy.tokens);
        from.copy_to(to);
        to += from.size();
      });
    }
  }

  void unpack(const Parcel& parcel) const {
    const std::byte* from = parcel.bytes.data();
    for (const PageCopy& copy : parcel.copies) {
      for_each_plane([&](int, std::size_t, const TensorView& plane) {
        const PageRows to(plane, copy.destination.index(), copy.tokens);
        to.copy_from(from, to.width);
        from += to.size();
      });
    }
  }

  void pull(Rank source, const Parcel& parcel) const {
    for (const PageCopy& copy : parcel.copies) {
      for_each_plane([&](int layer, std::size_t i, const TensorView& plane) {
        const PagePlanes theirs = *peers_.layer(source, layer);
        const PageRows from(theirs[i], copy.source.index(), copy.tokens);
        PageRows(plane, copy.destination.index(), copy.tokens).copy_from(from.data, from.pitch);
      });
    }
  }

  void exchange(const Parcels& give, Parcels& take, std::string_view operation) const {
    std::vector<Outgoing> sends;
    std::vector<Incoming> receives;
    for (const auto& [peer, parcel] : give) sends.push_back({peer, parcel.bytes});
    for (auto& [peer, parcel] : take) receives.push_back({peer, parcel.bytes});
    kv_.exchange(sends, receives, operation);
  }

  const PoolStorage& pools_;
  const PeerPools& peers_;
  Communicator& kv_;
  std::span<const int> layers_;
  Parcels outgoing_;
  Parcels incoming_;
};

}  // namespace

void copy_on_write(Backend& backend, const PoolStorage& pools, const PeerPools& peers,
                   Communicator& kv, std::span<const PageCopy> copies, std::size_t group) {
  if (copies.empty()) return;
  backend.settle();  // the pages to copy may still be written
  std::vector<LocalPageCopy> local;
  const std::span<const int> layers = pools.layout().groups()[group].layers;
  Transfer transfer(pools, peers, kv, layers);
  bool remote = false;
  for (const PageCopy& copy : copies) {
    if (copy.source.rank() != copy.destination.rank()) {
      transfer.add(copy);
      remote = true;
    } else if (copy.source.rank() == kv.rank()) {
      local.push_back({copy.source.index(), copy.destination.index(), copy.tokens});
    }
  }
  for (const int layer : layers) {
    if (!local.empty()) backend.copy_pages(pools.layer(layer), local);
  }
  if (remote) transfer.run(backend);
}

}  // namespace kvmesh
