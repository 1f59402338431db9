#!/usr/bin/env python3
"""Prints results of `kvmesh bench --json` as Markdown tables, one for each operation.

python3 bench/tables.py one_rank.json [two_ranks.json four_ranks.json ...]

Files of several numbers of ranks stand side by side. Efficiency is that of the same work (strong
scaling): the time on the fewest ranks over the time on n, divided by n over the fewest. A combine
and a plan have none, since their work is not divided among the ranks.
"""

import argparse

from results import load, tokens


def key_of(row):
    return row["batch"], row["context"], row.get("lengths", "even"), row["queries"]


def digits(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def rate_of(row):
    if row["amount"] == 0:
        return "–"
    if row["unit"] == "bytes":
        return f'{digits(row["rate"] / 1e9)} GB/s'
    if row["rate"] < 1e12:
        return f'{digits(row["rate"] / 1e9)} GFLOP/s'
    return f'{digits(row["rate"] / 1e12)} TFLOP/s'


def scales(op, ranks, base_ranks):
    return op not in ("combine", "plan") and ranks > base_ranks


def cells_of(row, base, with_efficiency, factor):
    """µs, rate, share, efficiency; `factor`: the ranks over those of `base`."""
    if row is None:
        return ["–"] * (4 if with_efficiency else 3)
    share = "–" if row["share"] is None else f'{100 * row["share"]:.1f} %'
    note = " (not captured)" if row["timing"] == "stream" else ""
    if "on_device" in row:
        note = f' (on the device {digits(1e6 * row["on_device"]["median"])})'
    cells = [digits(1e6 * row["seconds"]["median"]) + note, rate_of(row), share]
    if with_efficiency and base is None:
        cells.append("–")
    elif with_efficiency:
        speedup = base["seconds"]["median"] / row["seconds"]["median"]
        cells.append(f"{100 * speedup / factor:.0f} %")
    return cells


def table(op, runs):
    by_run = [(run["ranks"], {key_of(row): row for row in run["rows"] if row["op"] == op})
              for run in runs]
    keys = sorted({key for _, rows in by_run for key in rows})
    base_ranks = by_run[0][0]
    head = ["batch", "context", "queries"]
    for ranks, _ in by_run:
        head += [f"{ranks}: µs", "rate", "of ceiling"] + (["efficiency"] if scales(op, ranks, base_ranks) else [])
    lines = [f"**{op}**, by ranks", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for key in keys:
        batch, context, lengths, queries = key
        cells = [str(batch), tokens(context) + ("" if lengths == "even" else f" {lengths}"), tokens(queries)]
        for ranks, rows in by_run:
            cells += cells_of(rows.get(key), by_run[0][1].get(key), scales(op, ranks, base_ranks),
                              ranks / base_ranks)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", help="written by kvmesh bench --json")
    runs = load(parser.parse_args().results)
    ops = dict.fromkeys(row["op"] for run in runs for row in run["rows"])
    print("\n\n".join(table(op, runs) for op in ops))


if __name__ == "__main__":
    main()
