#!/usr/bin/env python3
"""Measures the combine of partial outputs by kvmesh and by FlashInfer's fused op, one rank per GPU, in one run.

python3 bench/peers/combine.py --kvmesh build/ci/launch/kvmesh -o combine     # combine.md and combine.json

A row is one query token x one query head of 128 dims; each rank keeps its share of the heads. A round is kvmesh's own
benchmark of all of its ways and then FlashInfer's op, each in CUDA graphs, each the slowest rank's time.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from ours import spread
from summary import of_rounds, of_turns
from table import digits

HEADS, DIM = 32, 128
TOKENS = (1, 4, 16, 128, 256)
CALLS = 64  # of a graph
LARGEST_ERROR = 0.02  # of the largest number
WAYS = "peer,nccl,recipe"
FUSED = "FlashInfer fused"
SLOWEST_START = 300  # seconds: the first one compiles
# torch 2.11's headers have NCCL's macros only with this definition, which FlashInfer does not give.
ENVIRONMENT = {"TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "FLASHINFER_EXTRA_CUDAFLAGS": "-DUSE_C10D_NCCL"}


def kvmesh(program, ranks, turns):
    """{way: {tokens: summary}}, the machine."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "rows.json"
        command = ["mpirun", "-np", str(ranks), program, "bench", "--device", "cuda", "--op", "combine", "--q-heads",
                   str(HEADS), "--kv-heads", "1", "--batch", ",".join(map(str, TOKENS)), "--context", "4096",
                   "--ways", WAYS, "--repeats", str(turns), "--row-seconds", "0.1", "--json", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=SLOWEST_START)
        result = json.loads(file.read_text(encoding="utf-8"))
    ways = {}
    for row in result["rows"]:
        ways.setdefault(f'kvmesh {row["way"]}', {})[row["batch"]] = spread(row["seconds"])
    return ways, f'{result["device"]}, driver {result["driver"]}, {result["versions"]}; kvmesh {result["version"]}'


class Fused:
    """FlashInfer's op on one rank, for a number of tokens, captured in a graph."""

    def __init__(self, tokens, rank, ranks):
        import torch
        import torch.distributed as dist
        from flashinfer.comm import dcp_lse_reduce as op

        torch.manual_seed(rank)
        heads = HEADS // ranks
        bf16 = torch.bfloat16
        self.o = torch.randn(tokens, heads, ranks, DIM, device="cuda").to(bf16)
        self.lse = torch.randn(tokens, heads, ranks, device="cuda")
        self.rank = rank
        room = op.decode_cp_a2a_lse_reduce_create_workspace(tokens, heads, ranks, DIM, bf16, dist.group.WORLD)
        self.stream = torch.cuda.Stream()  # a workspace is for one stream

        def run():
            return op.decode_cp_a2a_lse_reduce(self.o, self.lse, room, rank, ranks, "basee")

        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            run()
            self.stream.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):
                for _ in range(CALLS):
                    self.out = run()

    def check(self):
        """Compares the graph's last output with float64."""
        import torch
        import torch.distributed as dist

        o, lse = ([torch.empty_like(mine) for _ in range(dist.get_world_size())] for mine in (self.o, self.lse))
        dist.all_gather(o, self.o)
        dist.all_gather(lse, self.lse)
        weights = torch.stack([part[..., self.rank] for part in lse]).double().softmax(0)
        expected = (torch.stack([part[..., self.rank, :] for part in o]).double() * weights[..., None]).sum(0)
        self.replay()
        error = (self.out.double() - expected).abs().max() / expected.abs().max()
        if not error <= LARGEST_ERROR:
            raise ValueError(f"its output is off by {error:.3g} of the largest number")

    def replay(self):
        """Seconds per call of one replay, the slowest rank's."""
        import torch
        import torch.distributed as dist

        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        dist.barrier()
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            begin.record()
            self.graph.replay()
            end.record()
        end.synchronize()
        mine = torch.tensor(begin.elapsed_time(end) * 1e-3 / CALLS, device="cuda")
        dist.all_reduce(mine, dist.ReduceOp.MAX)
        return mine.item()


def fused_rank(rank, ranks, turns, meeting, output):
    import torch
    import torch.distributed as dist

    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"file://{meeting}", rank=rank, world_size=ranks,
                            device_id=torch.device("cuda", rank))
    times = {}
    for tokens in TOKENS:
        op = Fused(tokens, rank, ranks)
        op.check()
        times[tokens] = of_turns([op.replay() for _ in range(turns + 3)][3:])
    if rank == 0:
        pathlib.Path(output).write_text(json.dumps(times), encoding="utf-8")
    dist.destroy_process_group()


def fused(ranks, turns):
    """({tokens: summary}, None), or (None, the reason why there are none)."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "times.json"
        command = [sys.executable, __file__, "--turns", str(turns), "--meeting", f"{folder}/meeting", "-o", str(output)]
        running = [subprocess.Popen([*command, "--rank", str(rank), str(ranks)], stderr=subprocess.PIPE, text=True,
                                    env={**os.environ, **ENVIRONMENT})
                   for rank in range(ranks)]
        try:
            errors = [process.communicate(timeout=SLOWEST_START)[1] for process in running]
        except subprocess.TimeoutExpired:
            return None, f"no end after {SLOWEST_START} s"
        finally:
            for process in running:
                process.kill()
        if not output.exists():
            lines = [line for error in errors for line in error.splitlines() if "rror" in line]
            return None, lines[-1].strip()[:200] if lines else "no output"
        return {int(tokens): times for tokens, times in json.loads(output.read_text()).items()}, None


def markdown(rounds, where, problem):
    names = list(rounds)
    lines = [["rows", *names, *([f"peer ÷ {FUSED}"] if FUSED in rounds else [])]]
    lines.append(["---"] * len(lines[0]))
    for tokens in TOKENS:
        times = {name: of_rounds(rounds[name][tokens]) for name in names}
        cells = [f'{digits(1e6 * time["median"])} ({digits(1e6 * time["p10"])}–{digits(1e6 * time["p90"])})'
                 for time in times.values()]
        if FUSED in rounds:
            cells.append(f'{times["kvmesh peer"]["median"] / times[FUSED]["median"]:.3f}')
        lines.append([str(tokens * HEADS), *cells])
    footer = [where] + ([f"No {FUSED}: {problem}"] if problem else [])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n\n" + "\n".join(footer) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kvmesh", help="the program")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--turns", type=int, default=15, help="of a round")
    parser.add_argument("-o", "--output", default="combine", help="OUTPUT.md and OUTPUT.json")
    parser.add_argument("--rank", type=int, nargs=2, help=argparse.SUPPRESS)  # FlashInfer's op on this rank
    parser.add_argument("--meeting", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        return fused_rank(*arguments.rank, arguments.turns, arguments.meeting, arguments.output)
    if not arguments.kvmesh:
        parser.error("--kvmesh is required")

    rounds, where, problem = {}, "", None
    for _ in range(arguments.rounds):
        results, where = kvmesh(arguments.kvmesh, arguments.ranks, arguments.turns)
        if not problem:
            times, problem = fused(arguments.ranks, arguments.turns)
            results.update({FUSED: times} if times else {})
        for name, times in results.items():
            for tokens, summary in times.items():
                rounds.setdefault(name, {}).setdefault(tokens, []).append(summary)
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    report = {"program": "bench/peers/combine.py", "command": sys.argv, "date": date, "where": where,
              "problem": problem, "rounds": rounds}
    pathlib.Path(f"{arguments.output}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = markdown(rounds, where, problem)
    pathlib.Path(f"{arguments.output}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
