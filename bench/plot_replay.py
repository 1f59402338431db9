#!/usr/bin/env python3
"""Plots the hit rate of the prefix cache against its capacity, a line for each order of eviction, with
Belady's bound: as a PNG and an SVG. Needs matplotlib.

python3 bench/plot_replay.py --kvmesh build/release/launch/kvmesh -o hit_rate [flags of kvmesh replay]
python3 bench/plot_replay.py --results replay.json -o hit_rate

The first form runs `kvmesh replay`, for example with --trace FILE; its --json is saved as hit_rate.json.
"""

import argparse
import json
import subprocess
import sys

CAPACITIES = "250000,500000,1000000,2000000,3000000,5000000,8000000,15000000,30000000"


def load(path):
    try:
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        if result["program"] != "kvmesh replay":
            raise ValueError("made by something else")
        return result
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{path}: not a result of kvmesh replay --json ({error})")


def series(result):
    """Capacities and hit rates in percent by policy, the bound last."""
    lines = {}
    for row in result["rows"]:
        lines.setdefault(row["policy"], {})[row["capacity_tokens"]] = 100 * row["hit_rate"]
    bound = {row["capacity_tokens"]: 100 * row["belady_hit_rate"] for row in result["rows"]}
    return {**lines, "Belady's bound": bound}


def draw(result, out):
    try:
        import matplotlib
    except ImportError:
        sys.exit("plot_replay: needs matplotlib (python3-matplotlib, or pip install matplotlib)")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, points in series(result).items():
        style = {"color": "black", "linestyle": "--"} if name.startswith("Belady") else {"marker": "o"}
        axes.plot(*zip(*sorted(points.items())), label=name, markersize=4, **style)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"tokens that {result['ranks']} rank(s) together hold")
    axes.set_ylabel("prompt tokens found in the cache, %")
    axes.set_title(f"{result['trace']}: {result['requests']} requests, pages of {result['page_size']} tokens")
    axes.grid(alpha=0.3)
    axes.legend()
    for suffix in ("png", "svg"):
        figure.savefig(f"{out}.{suffix}", dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--kvmesh", help="the program, to run a replay now")
    source.add_argument("--results", help="what kvmesh replay --json wrote")
    parser.add_argument("-o", "--out", required=True, help="path of the plots, without .png and .svg")
    arguments, flags = parser.parse_known_args()
    if arguments.results and flags:
        parser.error(f"{flags[0]} is for a replay, not for results")
    if arguments.kvmesh:
        if "--capacity" not in flags:
            flags += ["--capacity", CAPACITIES]
        arguments.results = f"{arguments.out}.json"
        done = subprocess.run([arguments.kvmesh, "replay", *flags, "--json", arguments.results])
        if done.returncode != 0:
            sys.exit(done.returncode)
    draw(load(arguments.results), arguments.out)


if __name__ == "__main__":
    main()
