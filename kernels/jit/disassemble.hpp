// Disassembles machine code by the tools of a CUDA toolkit.
#pragma once

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>

namespace kvmesh::jit {

/// Runs nvdisasm, then cuobjdump if that fails, from a folder of $PATH or $CUDA_HOME/bin. Returns
/// the instructions of the file `cubin`, or nothing if no tool is found or both fail. Blocks, but
/// kills a tool that takes longer than `deadline`.
std::optional<std::string> disassemble(
    const std::filesystem::path& cubin,
    std::chrono::milliseconds deadline = std::chrono::seconds(60));

}  // namespace kvmesh::jit
