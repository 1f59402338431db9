"""A step on the ranks of mpirun: every value is the token's number, every key is zero, so causal
attention gives token i the mean of 0..i. With --fail a rank ends with an error instead. With --mpi4py
the mesh is made of a communicator of mpi4py; without mpi4py that ends with 77. Run by CTest."""

import importlib.util
import sys

import numpy as np

import kvmesh


def refuse_other_objects(MPI):
    side = MPI.COMM_WORLD.Split(MPI.COMM_WORLD.rank)
    both_sides = side.Create_intercomm(0, MPI.COMM_WORLD, 1 - MPI.COMM_WORLD.rank)
    for other, error in ((MPI.INT, TypeError), (MPI.INFO_NULL, TypeError), ("world", TypeError),
                         (MPI.COMM_NULL, kvmesh.InvalidArgument), (both_sides, kvmesh.InvalidArgument)):
        try:
            kvmesh.Mesh(comm=other)
        except error:
            continue
        raise AssertionError(f"{other} became a mesh")


def make_mesh():
    if "--mpi4py" not in sys.argv:
        return kvmesh.Mesh()
    if importlib.util.find_spec("mpi4py") is None:
        print("skipped: mpi4py is not installed")
        sys.exit(77)
    from mpi4py import MPI
    world = MPI.COMM_WORLD
    refuse_other_objects(MPI)
    turned = world.Split(0, -world.rank)  # ranks that no launcher gives
    mesh = kvmesh.Mesh(comm=turned)
    assert (turned.rank, mesh.rank) == (world.size - 1 - world.rank,) * 2, mesh
    return mesh


with make_mesh() as mesh:
    if "--fail" in sys.argv:
        if mesh.rank == 1:
            raise RuntimeError("rank 1 fails on purpose")
        mesh.barrier()  # up to its deadline of a minute, unless mpirun ends it
    assert (mesh.size, mesh.communicator) == (2, "mpi"), mesh
    with kvmesh.KvCache(mesh, q_heads=2, kv_heads=1, k_dim=4, page_size=2, pages_per_rank=8,
                        dtype="float32", placement="striped") as cache:
        step = cache.plan([(cache.create(), 10)])
        keys = np.zeros((10, 1, 4), np.float32)
        values = np.arange(10, dtype=np.float32)[:, None, None] * np.ones((1, 1, 4), np.float32)
        out, lse = step.run(0, np.ones((10, 2, 4), np.float32), keys, values, lse=True)
        np.testing.assert_allclose(out[:, 1, 3], np.arange(10) / 2, atol=1e-6)
        np.testing.assert_allclose(lse[:, 0], np.log(np.arange(10) + 1), atol=1e-6)
        assert mesh.sent_bytes > 0
