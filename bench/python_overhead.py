"""What a run() costs more in Python than in C++: the same smallest step, turn by turn with run_bench.

    PYTHONPATH=build/release/python python3 bench/python_overhead.py build/release/bench/run_bench

Microseconds per call, median (p10 - p90) of the turns, and of the differences from C++ in the same turn.
With numpy, and with torch where it is installed (on a GPU torch alone)."""

import argparse
import importlib.util
import statistics
import subprocess
import time

import numpy

import kvmesh

DIM = 8


def numpy_calls(step):
    q, k, v, out = (numpy.zeros((1, 1, DIM), numpy.float32) for _ in range(4))
    return {"numpy, out=": lambda: step.run(0, q, k, v, out=out),
            "numpy, a new output": lambda: step.run(0, q, k, v)}


def torch_calls(step, device):
    import torch
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    q, k, v, out = (torch.zeros(1, 1, DIM, dtype=dtype, device=device) for _ in range(4))
    calls = {"torch, out=": lambda: step.run(0, q, k, v, out=out),
             "torch, a new output": lambda: step.run(0, q, k, v)}
    if device == "cuda":
        stream = torch.cuda.current_stream()
        calls["torch, out= and stream="] = lambda: step.run(0, q, k, v, out=out, stream=stream)
    return calls


class Program:
    """run_bench, which measures a turn for each line."""

    def __init__(self, path, device, calls):
        self._process = subprocess.Popen([path, device, str(calls)], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, text=True)

    def turn(self):
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def turn_of(call, mesh, calls):
    mesh.wait()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls * 1e6


def spread(values):
    tenths = statistics.quantiles(values, n=10)
    return f"{statistics.median(values):7.2f} ({tenths[0]:.2f} - {tenths[-1]:.2f})"


def measure(options):
    """{name: microseconds of each turn}."""
    program = Program(options.program, options.device, options.calls)
    with kvmesh.Mesh(device=options.device, threads=1) as mesh:
        with kvmesh.KvCache(mesh, layers=1, q_heads=1, kv_heads=1, k_dim=DIM, pages_per_rank=8,
                            dtype="bfloat16" if options.device == "cuda" else "float32") as cache:
            step = cache.plan([(cache.create(), 1)])
            calls = numpy_calls(step) if options.device == "cpu" else {}
            if importlib.util.find_spec("torch"):
                calls |= torch_calls(step, options.device)
            turns = {"C++": [], **{name: [] for name in calls}}
            for turn in range(-2, options.turns):
                times = {"C++": program.turn()}
                times |= {name: turn_of(call, mesh, options.calls) for name, call in calls.items()}
                for name, micros in times.items():
                    if turn >= 0:
                        turns[name].append(micros)
            step.close()
    program.close()
    return turns


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="run_bench")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--turns", type=int, default=101)
    parser.add_argument("--calls", type=int, default=200, help="of a turn")
    options = parser.parse_args()
    turns = measure(options)
    print(f"{'':24} {'a call, us':>24} {'more than in C++':>24}")
    for name, values in turns.items():
        more = [value - of for value, of in zip(values, turns["C++"])]
        print(f"{name:24} {spread(values):>24} {spread(more) if name != 'C++' else '':>24}")


if __name__ == "__main__":
    main()
