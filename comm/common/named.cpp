#include "comm/common/named.hpp"

#include <string>
#include <utility>

#include "comm/common/size_mismatch.hpp"

namespace kvmesh {
namespace {

/// Collective. `mine`: the name of this rank.
std::unique_ptr<Communicator> named(std::unique_ptr<Communicator> group, Rank mine);

class Named final : public Communicator {
 public:
  Named(std::unique_ptr<Communicator> group, std::vector<Rank> names)
      : group_(std::move(group)), names_(std::move(names)) {}

  Rank rank() const override { return group_->rank(); }
  int size() const override { return group_->size(); }
  std::string_view kind() const override { return group_->kind(); }
  Rank name_of(Rank rank) const override { return names_.at(static_cast<std::size_t>(rank.value)); }
  void set_deadline(std::chrono::milliseconds deadline) override { group_->set_deadline(deadline); }
  std::chrono::milliseconds deadline() const override { return group_->deadline(); }
  std::uint64_t sent_bytes() const override { return group_->sent_bytes(); }

  void exchange(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                std::string_view operation) override {
    renamed([&] { group_->exchange(outgoing, incoming, operation); });
  }

  std::unique_ptr<Communicator> split(int color, int key) override {
    std::unique_ptr<Communicator> part;
    renamed([&] { part = group_->split(color, key); });
    return named(std::move(part), name_of(rank()));
  }

 private:
  template <class Call>
  void renamed(const Call& call) const {
    try {
      call();
    } catch (const Timeout& error) {
      std::vector<Rank> late;
      for (const Rank rank : error.late()) late.push_back(name_of(rank));
      throw Timeout(name_of(error.waiter()), std::move(late), error.operation(), deadline());
    } catch (const PeerLost& error) {
      // The message without its beginning, which names the ranks.
      const std::string text = error.what();
      const std::string begin = error.operation() + ": ";
      const std::size_t at = text.find(begin);
      throw PeerLost(name_of(error.waiter()), name_of(error.peer()), error.operation(),
                     at == std::string::npos ? text : text.substr(at + begin.size()));
    } catch (const SizeMismatch& error) {
      SizeMismatch::Message message = error.message();
      message.receiver = name_of(message.receiver);
      message.sender = name_of(message.sender);
      throw SizeMismatch(std::move(message));
    }
  }

  std::unique_ptr<Communicator> group_;
  std::vector<Rank> names_;
};

std::unique_ptr<Communicator> named(std::unique_ptr<Communicator> group, Rank mine) {
  std::vector<Rank> names = all_gather_value(*group, mine, "split");
  return std::make_unique<Named>(std::move(group), std::move(names));
}

}  // namespace

std::unique_ptr<Communicator> split_named(Communicator& whole, int color, int key) {
  std::unique_ptr<Communicator> group = whole.split(color, key);
  if (dynamic_cast<const Named*>(&whole) != nullptr) return group;
  return named(std::move(group), whole.name_of(whole.rank()));
}

std::vector<Rank> names_in(const Communicator& comm) {
  std::vector<Rank> names;
  for (int r = 0; r < comm.size(); ++r) names.push_back(comm.name_of(Rank{r}));
  return names;
}

}  // namespace kvmesh
