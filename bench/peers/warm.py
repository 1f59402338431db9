#!/usr/bin/env python3
"""Compiles FlashInfer's kernels for the rows, all modules side by side; run.py would compile them one
after another, for minutes, on a machine with a GPU.

python3 bench/peers/warm.py [--rows ...] &     # and meanwhile build kvmesh

Needs nvcc, no GPU. Compiles for Hopper alone unless FLASHINFER_CUDA_ARCH_LIST names another chip.
"""

import argparse
import os
import subprocess
import sys
import time

import rows


def modules_of(chosen):
    """(backend, dim) of all modules that rivals.py uses; for latent rows the dim is key/value."""
    modules = {}
    for row in chosen:
        if row.latent:
            modules[("mla fa3", row.dims)] = None
            continue
        backends = ["fa2"] if row.op == "decode" and row.queries == 1 else ["fa2", "fa3"]
        modules.update({(backend, row.dim): None for backend in backends})
    return list(modules)


def build(backend, dim):
    import torch
    from flashinfer.prefill import get_batch_prefill_module

    bf16 = torch.bfloat16
    if backend == "mla fa3":
        from flashinfer.jit import gen_batch_mla_module

        k_dim, v_dim = map(int, dim.split("/"))
        gen_batch_mla_module("fa3", bf16, bf16, bf16, torch.int32, v_dim, k_dim - v_dim, False).build_and_load()
        return
    dim = int(dim)
    # Decode by tensor cores is the same module: no rotary positions, window, soft cap or half sums.
    get_batch_prefill_module(backend, bf16, bf16, bf16, torch.int32, dim, dim, 0, False, False, False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", default=[], help="as run.py's")
    parser.add_argument("--module", nargs=2, metavar=("BACKEND", "DIM"), help="this one alone, here")
    arguments = parser.parse_args()
    os.environ.setdefault("FLASHINFER_CUDA_ARCH_LIST", "9.0a")
    if arguments.module:
        backend, dim = arguments.module
        return build(backend, dim)
    start = time.monotonic()
    running = {module: subprocess.Popen([sys.executable, __file__, "--module", module[0], str(module[1])])
               for module in modules_of(rows.select(arguments.rows))}
    failed = 0
    for (backend, dim), process in running.items():
        status = process.wait()
        failed += status != 0
        print(f"{backend} dim {dim}: {'there' if status == 0 else 'failed'} after {time.monotonic() - start:.0f} s",
              flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
