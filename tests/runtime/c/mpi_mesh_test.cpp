// A mesh of the C interface over an MPI communicator of the engine's own.
#include <gtest/gtest.h>
#include <mpi.h>

#include <memory>

#include "kvmesh/c/kvmesh.h"
#include "tests/support/c_options.hpp"

namespace kvmesh::test {
namespace {

struct FreeComm {
  void operator()(MPI_Comm* comm) const {
    MPI_Comm_free(comm);
    delete comm;
  }
};

/// The world's ranks in the opposite order, which no launcher gives.
std::unique_ptr<MPI_Comm, FreeComm> turned_world() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  std::unique_ptr<MPI_Comm, FreeComm> turned(new MPI_Comm);
  MPI_Comm_split(MPI_COMM_WORLD, 0, -rank, turned.get());
  return turned;
}

TEST(CMpiMesh, HasTheRanksOfTheCommunicatorAndOutlivesIt) {
  auto turned = turned_world();
  int rank = 0, ranks = 0;
  MPI_Comm_rank(*turned, &rank);
  MPI_Comm_size(*turned, &ranks);
  auto options = sized<kvmesh_mesh_options_t>();
  options.threads = 1;
  kvmesh_mesh_t* mesh = nullptr;
  ASSERT_EQ(kvmesh_mesh_from_mpi(turned.get(), &options, &mesh), KVMESH_OK) << kvmesh_last_error();
  turned.reset();  // the mesh has a duplicate

  auto info = sized<kvmesh_mesh_info_t>();
  ASSERT_EQ(kvmesh_mesh_get_info(mesh, &info), KVMESH_OK);
  EXPECT_EQ(info.rank, rank);
  EXPECT_EQ(info.ranks, ranks);
  EXPECT_EQ(info.kv_parallel, ranks);

  float mine[1] = {static_cast<float>(rank)}, lse[1] = {0}, merged[1] = {-1};
  std::int64_t shape[] = {1, 1, 1};
  kvmesh_tensor_t o{};
  o.data = mine;
  o.device_type = 1;
  o.ndim = 3;
  o.type_code = 2;
  o.type_bits = 32;
  o.type_lanes = 1;
  o.shape = shape;
  kvmesh_tensor_t of_lse = o, out = o;
  of_lse.data = lse;
  of_lse.ndim = 2;
  out.data = merged;
  kvmesh_combiner_t* combiner = nullptr;
  ASSERT_EQ(kvmesh_combiner_create(mesh, &combiner), KVMESH_OK);
  EXPECT_EQ(kvmesh_combiner_run(combiner, &o, &of_lse, nullptr, &out, nullptr, nullptr), KVMESH_OK)
      << kvmesh_last_error();
  EXPECT_FLOAT_EQ(merged[0], static_cast<float>(ranks - 1) / 2);
  kvmesh_combiner_destroy(combiner);
  kvmesh_mesh_destroy(mesh);
}

TEST(CMpiMesh, RefusesNoCommunicatorAndNoPlaceForTheMesh) {
  kvmesh_mesh_t* mesh = nullptr;
  EXPECT_EQ(kvmesh_mesh_from_mpi(nullptr, nullptr, &mesh), KVMESH_INVALID_ARGUMENT);
  MPI_Comm world = MPI_COMM_WORLD;
  EXPECT_EQ(kvmesh_mesh_from_mpi(&world, nullptr, nullptr), KVMESH_INVALID_ARGUMENT);
  auto options = sized<kvmesh_mesh_options_t>();
  options.device = KVMESH_DEVICE_AUTO + 1;
  EXPECT_EQ(kvmesh_mesh_from_mpi(&world, &options, &mesh), KVMESH_INVALID_ARGUMENT);
  EXPECT_EQ(mesh, nullptr);
}

}  // namespace
}  // namespace kvmesh::test
