#include "kvmesh/device_group.hpp"

#include <gtest/gtest.h>

#include <chrono>

#include "tests/support/ranks.hpp"

namespace kvmesh::test {
namespace {

TEST(DeviceGroup, OnCpusSendsNothingAndHasNoNccl) {
  run_loopback(3, [](Communicator& world) {
    const std::shared_ptr<Communicator> comm = world.split(0, 0);
    const std::uint64_t before = comm->sent_bytes();
    {
      DeviceGroup group(comm, Device{});
      EXPECT_EQ(group.nccl(), nullptr);
      EXPECT_EQ(&group.comm(), comm.get());
      EXPECT_EQ(group.device(), Device{});
      group.wait({}, "test");
    }
    EXPECT_EQ(comm->sent_bytes(), before);
  });
}

TEST(DeviceGroup, WaitEndsWhenItIsDone) {
  run_loopback(2, [](Communicator& world) {
    DeviceGroup group(world.split(0, 0), Device{});
    int asked = 0;
    group.wait_until([&] { return ++asked == 3; }, "test");
    EXPECT_EQ(asked, 3);
  });
}

TEST(DeviceGroup, WaitEndsAtTheDeadline) {
  run_loopback(2, [](Communicator& world) {
    const std::shared_ptr<Communicator> comm = world.split(0, 0);
    DeviceGroup group(comm, Device{});
    constexpr std::chrono::milliseconds kDeadline{20};
    comm->set_deadline(kDeadline);
    const auto begin = std::chrono::steady_clock::now();
    try {
      group.wait_until([] { return false; }, "test");
      ADD_FAILURE() << "no deadline";
    } catch (const Timeout& timeout) {
      EXPECT_GE(std::chrono::steady_clock::now() - begin, kDeadline);
      EXPECT_EQ(timeout.waiter(), comm->rank());
      EXPECT_EQ(timeout.operation(), "test");
    }
  });
}

}  // namespace
}  // namespace kvmesh::test
