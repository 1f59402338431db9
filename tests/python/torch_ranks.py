"""kvmesh.torch.PagedAttention on the ranks of mpirun: rank 0 draws the tensors and broadcasts them,
each rank holds part of the pages, and all get what one rank gets. Run by CTest; ends with 77 where
torch is not installed."""

import importlib.util
import os
import sys
import tempfile

if importlib.util.find_spec("torch") is None:
    print("skipped: torch is not installed")
    sys.exit(77)

import torch
from torch import distributed

import kvmesh
from kvmesh.torch import PagedAttention

PAGES, PAGE, HEADS, DIM, LENGTHS = 40, 16, 6, 32, [30, 77, 16, 64]


def broadcast(*shape):
    values = torch.randn(shape) if distributed.get_rank() == 0 else torch.empty(shape)
    distributed.broadcast(values, 0)
    return values


def attend(paged, tensors):
    """(output, number of tokens in this rank's cache)."""
    k_cache, v_cache = torch.full((2, 1, HEADS, PAGES * PAGE, DIM), float("nan"))
    for row, length in enumerate(LENGTHS):
        paged.reserve(torch.tensor([row]), torch.tensor([length]))
        k, v = tensors["kv"][row]
        paged.assign(torch.tensor([row]), torch.arange(length)[None], k, v, k_cache, v_cache)
    out = paged.forward(tensors["query"], k_cache, v_cache, torch.tensor(LENGTHS),
                        score_mod=lambda score, b, h, q, kv: score + tensors["bias"][h, kv])
    return out, int((~k_cache[0, 0, :, 0].isnan()).sum())


def main():
    meeting = os.path.join(tempfile.gettempdir(), f"kvmesh_torch_{os.getppid()}")  # mpirun's number
    distributed.init_process_group("gloo", init_method=f"file://{meeting}",
                                   rank=int(os.environ["OMPI_COMM_WORLD_RANK"]),
                                   world_size=int(os.environ["OMPI_COMM_WORLD_SIZE"]))
    tensors = {"kv": [broadcast(2, 1, HEADS, length, DIM) for length in LENGTHS],
               "query": broadcast(len(LENGTHS), HEADS, 12, DIM), "bias": broadcast(HEADS, 80)}
    make = lambda **options: PagedAttention(PAGES, PAGE, len(LENGTHS), device="cpu", **options)
    spread = make()
    out, held = attend(spread, tensors)
    assert spread.mesh.size == distributed.get_world_size() == 2
    assert 0 < held < sum(LENGTHS)
    alone = []
    kvmesh.run_on_threads(1, lambda mesh: alone.append(attend(make(mesh=mesh), tensors)))
    assert alone[0][1] == sum(LENGTHS)
    torch.testing.assert_close(out, alone[0][0], atol=2e-6, rtol=0)
    distributed.destroy_process_group()
    print(f"SUCCESS: {held} of {sum(LENGTHS)} tokens here, the result is one rank's")


main()
