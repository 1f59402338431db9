#include "launch/cli/world_ranks.hpp"

#include <string>
#include <utility>
#include <vector>

namespace kvmesh::launch {
namespace {

class Named final : public Communicator {
 public:
  /// `names[r]` is the world rank of rank r.
  Named(Communicator& inner, std::vector<Rank> names) : inner_(&inner), names_(std::move(names)) {}
  Named(std::unique_ptr<Communicator> inner, std::vector<Rank> names)
      : owned_(std::move(inner)), inner_(owned_.get()), names_(std::move(names)) {}

  Rank rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  std::string_view kind() const override { return inner_->kind(); }
  void set_deadline(std::chrono::milliseconds deadline) override { inner_->set_deadline(deadline); }
  std::chrono::milliseconds deadline() const override { return inner_->deadline(); }
  std::uint64_t sent_bytes() const override { return inner_->sent_bytes(); }

  void exchange(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                std::string_view operation) override {
    renamed([&] { inner_->exchange(outgoing, incoming, operation); });
  }

  std::unique_ptr<Communicator> split(int color, int key) override {
    std::unique_ptr<Communicator> part;
    renamed([&] { part = inner_->split(color, key); });
    std::vector<Rank> names = all_gather_value(*part, name(rank()), "split");
    return std::make_unique<Named>(std::move(part), std::move(names));
  }

 private:
  Rank name(Rank rank) const { return names_.at(static_cast<std::size_t>(rank.value)); }

  template <class Call>
  void renamed(const Call& call) const {
    try {
      call();
    } catch (const Timeout& error) {
      std::vector<Rank> late;
      for (const Rank rank : error.late()) late.push_back(name(rank));
      throw Timeout(name(error.waiter()), std::move(late), error.operation(), deadline());
    } catch (const PeerLost& error) {
      // The message without its beginning, which names the ranks.
      const std::string text = error.what();
      const std::string begin = error.operation() + ": ";
      const std::size_t at = text.find(begin);
      throw PeerLost(name(error.waiter()), name(error.peer()), error.operation(),
                     at == std::string::npos ? text : text.substr(at + begin.size()));
    }
  }

  std::unique_ptr<Communicator> owned_;
  Communicator* inner_;
  std::vector<Rank> names_;
};

std::vector<Rank> own_names(const Communicator& world) {
  std::vector<Rank> names;
  for (int r = 0; r < world.size(); ++r) names.push_back(Rank{r});
  return names;
}

}  // namespace

std::unique_ptr<Communicator> with_world_ranks(std::unique_ptr<Communicator> world) {
  std::vector<Rank> names = own_names(*world);
  return std::make_unique<Named>(std::move(world), std::move(names));
}

std::unique_ptr<Communicator> with_world_ranks(Communicator& world) {
  return std::make_unique<Named>(world, own_names(world));
}

}  // namespace kvmesh::launch
