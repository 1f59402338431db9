#include "kvmesh/error.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "kvmesh/sequence_stream.hpp"
#include "kvmesh/tcp.hpp"

namespace kvmesh {
namespace {

template <class Type>
ErrorCode code_of(const Type& error) {
  try {
    throw Type(error);
  } catch (const Error& caught) {  // as a caller catches it
    return caught.code();
  }
}

TEST(Error, HasOneCodePerType) {
  const std::vector<ErrorCode> codes{code_of(Error("")),
                                     code_of(InvalidArgument("")),
                                     code_of(Unsupported("")),
                                     code_of(UnknownSequence(SequenceId{})),
                                     code_of(OutOfPages(1, {})),
                                     code_of(OutOfThreads(1, 0, "")),
                                     code_of(OutOfMemory(Rank{0}, 1, "")),
                                     code_of(Timeout(Rank{0}, {}, "", std::chrono::seconds(1))),
                                     code_of(PeerLost(Rank{0}, Rank{1}, "", "")),
                                     code_of(BrokenGroup("")),
                                     code_of(DigestMismatch("")),
                                     code_of(RendezvousError("")),
                                     ErrorCode::kNccl,
                                     code_of(StreamError(StreamError::Reason::kIo, ""))};
  for (std::size_t i = 0; i < codes.size(); ++i) {
    EXPECT_EQ(static_cast<std::size_t>(codes[i]), i + 1);  // what the C ABI promises
  }
}

}  // namespace
}  // namespace kvmesh
