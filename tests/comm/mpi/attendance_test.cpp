// Ranks of a machine that have come to a point: processes that come, stop and die.
#include "comm/mpi/attendance.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/support/killed_process.hpp"

namespace kvmesh::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Point = Attendance::Point;

Launch launch_of(int rank, int size, int local_size) {
  return {.launcher = Launcher::kOpenMpi,
          .rank = rank,
          .size = size,
          .local_size = local_size,
          .job = "test/" + std::to_string(::getpid())};
}

/// A process that is a rank of `launch`, comes to the start and stays there.
pid_t started(const Launch& launch) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  Attendance attendance(launch);
  attendance.come(Point::kStart);
  while (true) ::pause();
}

void expect_missing(const Attendance& attendance, Point point, const std::vector<Rank>& expected) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (attendance.missing(point) != expected && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(attendance.missing(point), expected);
}

TEST(Attendance, NamesLateStoppedAndDeadRanks) {
  Attendance attendance(launch_of(1, 4, 4));
  attendance.come(Point::kStart);
  EXPECT_EQ(attendance.missing(Point::kStart), (std::vector{Rank{0}, Rank{2}, Rank{3}}));
  KilledProcess zero(started(launch_of(0, 4, 4)));
  const pid_t third = started(launch_of(3, 4, 4));
  KilledProcess three(third);
  expect_missing(attendance, Point::kStart, {Rank{2}});
  EXPECT_EQ(attendance.note(Point::kStart), "");
  ::kill(third, SIGSTOP);
  expect_missing(attendance, Point::kStart, {Rank{2}, Rank{3}});
  ::kill(third, SIGCONT);
  expect_missing(attendance, Point::kStart, {Rank{2}});
  zero.die();
  expect_missing(attendance, Point::kStart, {Rank{0}, Rank{2}});
  expect_missing(attendance, Point::kEnd, {Rank{0}, Rank{2}, Rank{3}});
  attendance.remove_name();
}

TEST(Attendance, ReportsThatOtherMachinesAreNotVisible) {
  Attendance attendance(launch_of(0, 4, 2));
  attendance.come(Point::kStart);
  KilledProcess one(started(launch_of(1, 4, 2)));
  expect_missing(attendance, Point::kStart, {Rank{2}, Rank{3}});
  EXPECT_EQ(attendance.note(Point::kStart), " (of the 4 ranks, 2 are seen on this machine)");
  attendance.remove_name();
}

/// A file that Attendance could have made.
class FileOfAJob {
 public:
  FileOfAJob(const std::string& job, std::chrono::minutes age)
      : path_("/dev/shm/kvmesh-" + std::to_string(::getuid()) + "-" + job) {
    std::ofstream(path_, std::ios::app).close();
    fs::last_write_time(path_, fs::file_time_type::clock::now() - age);
  }
  ~FileOfAJob() { fs::remove(path_); }
  FileOfAJob(const FileOfAJob&) = delete;
  FileOfAJob& operator=(const FileOfAJob&) = delete;
  bool is_there() const { return fs::exists(path_); }

 private:
  fs::path path_;
};

TEST(Attendance, FirstRankOfAMachineRemovesFilesOfKilledJobs) {
  const std::string pid = std::to_string(::getpid());
  const FileOfAJob abandoned("test_abandoned_" + pid, 61min);
  const FileOfAJob young("test_young_" + pid, 59min);

  // A rank that has waited for long.
  Launch other = launch_of(0, 2, 2);
  other.job = "test_waiting_" + pid;
  other.local_rank = 1;
  KilledProcess waiting(started(other));
  other.rank = 1;
  Attendance watch(other);
  expect_missing(watch, Point::kStart, {});
  const FileOfAJob locked(other.job, 61min);

  Launch launch = launch_of(0, 2, 2);
  launch.job = "test_again_" + pid;
  const FileOfAJob again(launch.job, 61min);
  launch.local_rank = 1;
  const Attendance second(launch);
  EXPECT_TRUE(abandoned.is_there());
  launch.local_rank = 0;
  const Attendance first(launch);
  EXPECT_FALSE(abandoned.is_there());
  EXPECT_TRUE(again.is_there()) << "the other ranks use it";
  EXPECT_TRUE(young.is_there());
  EXPECT_TRUE(locked.is_there());
}

}  // namespace
}  // namespace kvmesh::test
