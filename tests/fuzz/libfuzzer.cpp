// The entry of libFuzzer, which takes no answer but 0.
#include "tests/fuzz/target.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  reads(std::span(data, size));
  return 0;
}
