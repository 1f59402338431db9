// The stream of an engine's steps, and the graph of its decode steps, for engine_loop.cpp. Without
// CUDA, on a CPU, and where ranks combine through the host, steps run without a graph.
#pragma once

#include <kvmesh/kvmesh.hpp>

#include <cstdint>
#include <functional>

#ifdef ENGINE_CUDA
#include "cuda_graph.hpp"

class StepGraph {
 public:
  explicit StepGraph(kvmesh::Mesh& mesh) {
    if (mesh.device().kind != kvmesh::DeviceKind::kCuda) return;
    stream_ = make_stream();
    // Rows of a reproducible cache go over NCCL or through the host; others may use windows, too.
    captures_ = mesh.kv_parallel() == 1 || mesh.device_group().nccl() != nullptr;
  }

  kvmesh::Stream stream() const { return {stream_.get()}; }

  /// Enqueues `work`, whose launches and addresses are the same each time: captures it in a graph
  /// if there is none of this generation yet, and launches the graph.
  void run(std::uint64_t generation, const std::function<void()>& work) {
    if (!captures_) return work();
    if (!graph_ || generation != generation_) {
      graph_ = capture(stream_.get(), work);
      generation_ = generation;
      ++captured_;
    }
    check(cudaGraphLaunch(graph_.get(), stream_.get()));
    ++launched_;
  }

  int captured() const { return captured_; }
  int launched() const { return launched_; }

 private:
  CudaStream stream_{nullptr, cudaStreamDestroy};
  Graph graph_{nullptr, cudaGraphExecDestroy};
  std::uint64_t generation_ = 0;
  bool captures_ = false;
  int captured_ = 0, launched_ = 0;
};

#else

class StepGraph {
 public:
  explicit StepGraph(kvmesh::Mesh&) {}
  kvmesh::Stream stream() const { return {}; }
  void run(std::uint64_t, const std::function<void()>& work) { work(); }
  int captured() const { return 0; }
  int launched() const { return 0; }
};

#endif
