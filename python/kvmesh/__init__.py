"""Exact attention over a KV cache that is spread in pages over many ranks.

    with kvmesh.Mesh() as mesh, kvmesh.KvCache(mesh, q_heads=8, kv_heads=2, k_dim=64,
                                               pages_per_rank=64) as cache:
        sequence = cache.create()
        step = cache.plan([(sequence, 1000)])
        out = step.run(0, q, k, v)
"""

import atexit as _atexit
import sys as _sys
from typing import Any as _Any

from . import _nccl as _  # before the extension module

from . import _kvmesh, errors
from ._kvmesh import (BlockMask, Buffer, Combiner, Expr, ExternalPlan, ExternalPool, KvCache,
                      MaskMod, Mesh, PageAllocator, Pool, PrefixKey,
                      PrefixMatch, ScoreMod, StepPlan, alibi, causal, cpu_instruction_set,
                      cuda_device_count, exp, log, make_block_mask, maximum, minimum, mpi_library,
                      nccl_version, no_mask, prefix_lm, run_on_threads, sliding_window, soft_cap,
                      sqrt, tanh, to_float, to_int, where)
from ._picture import Picture, draw_pages
from .errors import (BrokenGroup, DigestMismatch, Error, InvalidArgument, NcclError, OutOfMemory,
                     OutOfPages, OutOfThreads, PeerLost, RendezvousError, StreamError, Timeout,
                     UnknownSequence, Unsupported)

__version__ = ".".join(map(str, _kvmesh.version))


@_atexit.register
def _finish() -> None:
    """Ends MPI, which waits for all ranks. It is not called if an error ends this rank, so that mpirun
    notices and ends the others."""
    if getattr(_sys, "last_value", None) is None:
        _kvmesh.finish_mpi()


def combine(mesh: Mesh, o: _Any, lse: _Any, *, scatter: str = "all", strategy: str = "auto",
            out: _Any = None, out_lse: _Any = None, stream: _Any = None) -> _Any:
    """Merges the ranks' partials once; a Combiner keeps its buffers for the next layer."""
    with Combiner(mesh) as combiner:
        return combiner(o, lse, scatter=scatter, strategy=strategy, out=out, out_lse=out_lse,
                        stream=stream)


# A list, which type checkers can read.
__all__ = ["BlockMask", "BrokenGroup", "Buffer", "Combiner", "DigestMismatch", "Error", "Expr",
           "ExternalPlan", "ExternalPool", "InvalidArgument", "KvCache", "MaskMod", "Mesh", "NcclError",
           "OutOfMemory", "OutOfPages", "OutOfThreads", "PageAllocator", "PeerLost", "Picture", "Pool",
           "PrefixKey", "PrefixMatch", "RendezvousError", "ScoreMod", "StepPlan", "StreamError", "Timeout",
           "UnknownSequence", "Unsupported", "alibi", "causal", "combine", "cpu_instruction_set",
           "cuda_device_count", "draw_pages", "errors", "exp", "log", "make_block_mask", "maximum",
           "minimum", "mpi_library", "nccl_version", "no_mask", "prefix_lm", "run_on_threads",
           "sliding_window", "soft_cap", "sqrt", "tanh", "to_float", "to_int", "where"]
