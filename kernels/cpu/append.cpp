// append and copy_pages: this file checks, cpu/ copies.
#include "core/check.hpp"
#include "kernels/cpu/copy.hpp"
#include "kernels/pool_checks.hpp"
#include "kvmesh/attention.hpp"

namespace kvmesh {

void append(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
            std::span<const TokenSlot> slots, ThreadPool& threads) {
  check_writable_pool("append", pool);
  check_new_tokens(k, v, pool, std::ssize(slots));
  for (const TokenSlot& slot : slots) {
    if (slot.page < 0) continue;
    require(slot.page < pool.k.size(0) && slot.offset >= 0 && slot.offset < pool.k.size(2),
            "append: slot (page {}, offset {}) is outside the pool {}", slot.page, slot.offset,
            pool.k);
  }
  cpu::write_tokens(pool, k, v, slots, threads);
}

void copy_pages(const PagePlanes& planes, std::span<const LocalPageCopy> copies) {
  check_planes("copy_pages", planes);
  for (const LocalPageCopy& copy : copies) {
    for (const TensorView& plane : planes) {
      require(copy.source >= 0 && copy.source < plane.size(0) && copy.destination >= 0 &&
                  copy.destination < plane.size(0) && copy.tokens >= 0 &&
                  copy.tokens <= plane.size(2),
              "copy_pages: {} tokens from page {} to {} do not lie in the plane {}", copy.tokens,
              copy.source, copy.destination, plane);
    }
  }
  for (const LocalPageCopy& copy : copies) {
    for (const TensorView& plane : planes) cpu::copy_page(plane, copy);
  }
}

}  // namespace kvmesh
