// A layer's pages as an engine has them: in its own order of memory, on ranks by its own rule.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kvmesh/device_memory.hpp"
#include "kvmesh/external_pool.hpp"
#include "launch/verify/random.hpp"

namespace kvmesh::verify {

/// Where an engine keeps values.
enum class ValuePlace : std::uint8_t {
  kApart,      ///< in a tensor of their own
  kPaired,     ///< the values of a page after its keys
  kSideBySide  ///< the value of a token and head after its key
};

struct EngineForm {
  bool heads_first = true;  ///< [pages, heads, tokens, dim] (HND); else tokens first (NHD)
  ValuePlace values = ValuePlace::kApart;
  int gap = 0;                  ///< elements between one row and the next
  std::int64_t interleave = 0;  ///< ExternalPoolOptions::interleave
  friend bool operator==(const EngineForm&, const EngineForm&) = default;
};
EngineForm random_form(Random& random, int page_size);
/// "NHD, paired, 3 between rows, interleave 1"
std::string describe(const EngineForm& form);

/// Whether kernels can take pages of layers like `layer` apart into some with fewer tokens: see
/// ExternalPoolOptions::interleave.
bool can_be_divided(const KvPool& layer, const EngineForm& form);

/// One sequence of a batch, whose first tokens are in the pages and whose `appended` last ones a
/// run will write.
struct EngineSequence {
  SequenceId sequence{};  ///< of the cache that has its tokens
  std::int64_t length = 0;
  std::int64_t appended = 0;
  std::int64_t queries = 0;
};

/// This rank's pages and page tables. Everything that holds no token is NaN.
class EnginePages {
 public:
  /// Pages for layers like `layer`, of `heads` of the model's KV heads.
  EnginePages(const Mesh& mesh, const KvPool& layer, IndexRange heads, const EngineForm& form,
              std::int64_t pages);

  const EngineForm& form() const { return form_; }
  /// Whether the pages of all ranks can take the batch. The same on every rank.
  bool have_room_for(std::span<const EngineSequence> batch) const;

  /// Lays out a batch: the tokens that are not appended come from `from`, a pool of all heads on
  /// the host, where `source` has them. Pages that a window has given up are not read.
  /// REQUIRES: there is room.
  void fill(const KvPool& from, const PageAllocator& source, std::span<const EngineSequence> batch);
  /// The pages on the mesh's device, with all that the host has now.
  KvPool on_device();
  /// Valid until the next batch.
  PageTables tables() const;

  /// Whether all that holds no token, appended ones included, is still NaN. REQUIRES: the device is
  /// done with the pages.
  bool gaps_untouched();

 private:
  struct Slot {
    std::int64_t rank = 0, page = 0, offset = 0;
  };
  /// The rank of a position, its page among those that the rank has of the sequence, and its place
  /// there.
  Slot slot_of(std::int64_t position) const;
  std::int64_t pages_on(std::int64_t rank, const EngineSequence& sequence) const;
  void take_pages(const EngineSequence& sequence);
  void copy_tokens(const KvPool& from, const PageAllocator& source, const EngineSequence& sequence,
                   std::int64_t first_entry);
  TensorView plane(const TensorView& like, void* data, std::int64_t row, std::int64_t page) const;
  /// The pool over these rows and, if each has some, their scales. Its device is the mesh's, also
  /// where the rows are on the host, for this class alone.
  KvPool pool_at(void* rows, void* scales) const;
  void set_scales(KvPool& made, float* scales) const;

  KvPool like_;
  EngineForm form_;
  IndexRange heads_;
  Device device_;
  std::int64_t pages_, page_size_, me_, ranks_;
  std::vector<std::byte> rows_, scales_;
  DeviceMemory rows_there_, scales_there_;  // empty on the CPU
  std::vector<bool> is_written_;            // [pages, page_size] of tokens
  std::vector<std::int32_t> q_indptr_, kv_lens_, indptr_, indices_, appended_;
};

}  // namespace kvmesh::verify
