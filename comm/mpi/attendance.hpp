// The ranks that have reached a call of MPI that waits for all of them.
#pragma once

#include <string>
#include <vector>

#include "core/posix/descriptor.hpp"
#include "kvmesh/launcher.hpp"
#include "kvmesh/types.hpp"

namespace kvmesh {

/// MPI does not report for whom MPI_Init waits. So each rank locks one byte of a file that the
/// ranks of a machine have in common (/dev/shm, named after the user and the job) when it comes to
/// a point. The system removes a lock with its process. A file that cannot be made is no error:
/// then no other rank seems to have come.
class Attendance {
 public:
  enum class Point { kStart, kEnd };

  /// The first rank of a machine also removes the files that killed jobs left more than an hour
  /// ago. REQUIRES: `launch` has a size. A process makes one object.
  explicit Attendance(const Launch& launch);
  Attendance(const Attendance&) = delete;
  Attendance& operator=(const Attendance&) = delete;

  /// Records that this rank has come to `point`.
  void come(Point point);
  /// Returns the other ranks that have not come, or are stopped (SIGSTOP). Ranks of other machines
  /// are among them: they are not seen here.
  std::vector<Rank> missing(Point point) const;
  /// Returns a note for a message if ranks may be on other machines, else "".
  std::string note(Point point) const;
  /// Removes the file's name. Call it when all ranks have come to kStart: they have the file open.
  void remove_name();

 private:
  bool is_here(Point point, int rank) const;

  int rank_;
  int size_;
  int local_size_;  // 0: unknown
  std::string path_;
  Descriptor file_;
};

}  // namespace kvmesh
