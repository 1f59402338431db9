"""A step on the ranks of mpirun: every value is the token's number, every key is zero, so causal
attention gives token i the mean of 0..i. With --fail a rank ends with an error instead. Run by CTest."""

import sys

import numpy as np

import kvmesh

with kvmesh.Mesh() as mesh:
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
