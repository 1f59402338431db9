"""Exact attention over a KV cache that is spread in pages over many ranks.

    with kvmesh.Mesh() as mesh, kvmesh.KvCache(mesh, q_heads=8, kv_heads=2, k_dim=64,
                                               pages_per_rank=64) as cache:
        sequence = cache.create()
        step = cache.plan([(sequence, 1000)])
        out = step.run(0, q, k, v)
"""

import atexit as _atexit
import sys as _sys

from . import _nccl as _  # before the extension module

from . import _kvmesh
from ._kvmesh import (BlockMask, Buffer, Combiner, Expr, ExternalPlan, ExternalPool, KvCache,
                      MaskMod, PageAllocator, Pool, PrefixKey,
                      PrefixMatch, ScoreMod, StepPlan, alibi, causal, cpu_instruction_set,
                      cuda_device_count, exp, log, make_block_mask, maximum, minimum, mpi_library,
                      nccl_version, no_mask, prefix_lm, sliding_window, soft_cap, sqrt, tanh,
                      to_float, to_int, where)
from ._picture import Picture, draw_pages
from .errors import (BrokenGroup, DigestMismatch, Error, InvalidArgument, NcclError, OutOfMemory,
                     OutOfPages, OutOfThreads, PeerLost, RendezvousError, StreamError, Timeout,
                     UnknownSequence, Unsupported)

__version__ = ".".join(map(str, _kvmesh.version))


@_atexit.register
def _finish():
    """Ends MPI, which waits for all ranks. Not called if an error ends this one, so that mpirun
    notices and ends the others."""
    if getattr(_sys, "last_value", None) is None:
        _kvmesh.finish_mpi()


def Mesh(*, device="cpu", head_parallel=1, threads=0, deadline=None, comm=None, group=None, rank=None,
         size=None, rendezvous=None, secret=""):
    """The ranks of a job, kv_parallel x head_parallel.

    Without arguments: the ranks that a launcher has started (docs/launching.md), else this process
    alone. comm: an mpi4py communicator. group: a process group of torch.distributed, whose ranks
    then meet over TCP. rank, size and rendezvous ("host:port", where rank 0 listens): a meeting over
    TCP; without a secret only at private addresses. device: "cpu", "cuda" or "auto". deadline:
    seconds that any wait for a peer may take. Collective.
    """
    options = _kvmesh.MeshOptions(device, head_parallel, threads, deadline)
    if comm is not None:
        from mpi4py import MPI
        return _kvmesh.mesh_over_mpi(MPI._addressof(comm), options)
    if group is not None:
        from ._groups import meeting_of
        rank, size, rendezvous, secret = meeting_of(group)
    if rendezvous is not None:
        if rank is None or size is None:
            raise InvalidArgument("a rendezvous takes rank and size, too")
        host, _, port = rendezvous.rpartition(":")
        return _kvmesh.mesh_over_tcp(rank, size, host.strip("[]"), int(port), secret, options)
    return _kvmesh.mesh_from_launcher(options)


def run_on_threads(ranks, body, *, device="cpu", head_parallel=1, threads=1, deadline=None):
    """Calls body(mesh) on `ranks` threads, each with its own mesh, which is closed at the end. The
    first error is raised here, and ends the others' waits."""
    _kvmesh.run_on_threads(ranks, body,
                           _kvmesh.MeshOptions(device, head_parallel, threads, deadline))


def combine(mesh, o, lse, **arguments):
    """Merges the ranks' partials once; a Combiner keeps its buffers for the next layer."""
    with Combiner(mesh) as combiner:
        return combiner(o, lse, **arguments)


__all__ = [name for name in dir() if not name.startswith("_")]
