// Everything that an engine includes.
#pragma once

#include "kvmesh/allocator.hpp"
#include "kvmesh/attention.hpp"
#include "kvmesh/block_mask.hpp"
#include "kvmesh/combine.hpp"
#include "kvmesh/communicator.hpp"
#include "kvmesh/device_memory.hpp"
#include "kvmesh/error.hpp"
#include "kvmesh/kv_cache.hpp"
#include "kvmesh/mesh.hpp"
#include "kvmesh/mods.hpp"
#include "kvmesh/paged_attention.hpp"
#include "kvmesh/partial.hpp"
#include "kvmesh/stream.hpp"
#include "kvmesh/tensor.hpp"
#include "kvmesh/thread_pool.hpp"
#include "kvmesh/types.hpp"
