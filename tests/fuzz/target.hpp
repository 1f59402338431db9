// A fuzz target is one function, which libFuzzer and the replay of the seeds both call.
#pragma once

#include <cstdint>
#include <span>

/// Reads `bytes` as an input from outside, and aborts if the reader breaks its contract. Returns
/// whether the reader accepts them.
bool reads(std::span<const std::uint8_t> bytes);
