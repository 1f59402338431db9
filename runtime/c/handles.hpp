// The objects behind the handles of the C interface.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "kvmesh/c/external.h"
#include "kvmesh/c/kvmesh.h"
#include "kvmesh/combine.hpp"
#include "kvmesh/draft_trees.hpp"
#include "kvmesh/external_pool.hpp"
#include "kvmesh/kv_cache.hpp"
#include "kvmesh/mesh.hpp"
#include "kvmesh/nccl.hpp"

struct kvmesh_mesh {
  kvmesh::Mesh mesh;
};

struct kvmesh_cache {
  kvmesh::KvCache cache;
};

struct kvmesh_plan {
  kvmesh::StepPlan plan;
};

struct kvmesh_external_pool {
  kvmesh::ExternalPool pool;
};

struct kvmesh_external_plan {
  kvmesh::ExternalPlan plan;
};

struct kvmesh_draft_trees {
  kvmesh::mods::DraftTrees trees;
};

struct kvmesh_mask {
  kvmesh::MaskMod mod;
  std::string text;
};

struct kvmesh_score {
  kvmesh::ScoreMod mod;
  std::string text;
};

struct kvmesh_prefix_key {
  kvmesh::PrefixKey key;
};

/// On the CPU, or on a GPU: one of the two.
struct kvmesh_combiner {
  std::optional<kvmesh::Combiner> host;
  std::optional<kvmesh::DeviceCombiner> device;
};
