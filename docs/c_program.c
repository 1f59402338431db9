/* The program of install.md. */
#include <kvmesh/c/kvmesh.h>
#include <stdio.h>

int main(void) {
  kvmesh_mpi_session_t* mpi = NULL;
  kvmesh_mesh_t* mesh = NULL;
  kvmesh_cache_t* cache = NULL;
  kvmesh_mesh_info_t info = KVMESH_INIT(info);
  kvmesh_cache_options_t options = KVMESH_INIT(options);
  options.q_heads = 8, options.kv_heads = 2, options.k_dim = 64, options.pages_per_rank = 64;
  const int failed = kvmesh_mpi_session_create(&mpi) || kvmesh_mesh_from_launcher(NULL, &mesh) ||
                     kvmesh_cache_create(mesh, &options, &cache) ||
                     kvmesh_mesh_get_info(mesh, &info);
  if (failed) fprintf(stderr, "%s\n", kvmesh_last_error());
  if (!failed) printf("rank %d of %d\n", info.rank, info.ranks);
  kvmesh_cache_destroy(cache);
  kvmesh_mesh_destroy(mesh);
  kvmesh_mpi_session_destroy(mpi);
  return failed;
}
