#!/usr/bin/env python3
"""Draws the share of the ceiling against the context, one line per batch, as an SVG.

python3 bench/plot.py results.json [more.json ...] -o share.svg

One panel per operation and number of queries, one row of panels per number of ranks. Needs only
Python.
"""

import argparse
import html
import math

from results import load, tokens

WIDTH, HEIGHT = 300, 200  # of a panel's axes
LEFT, TOP, GAP_X, GAP_Y, BOTTOM = 70, 92, 64, 84, 30
COLORS = ["#3366cc", "#dc3912", "#109618", "#ff9900", "#990099", "#0099c6", "#dd4477", "#66aa00"]


def text(x, y, words, size=12, anchor="middle", more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" {more}>{html.escape(words)}</text>'


def line(x1, y1, x2, y2, color="#ddd"):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>'


class Scale:
    """Returns the position of a context and a share in a panel."""

    def __init__(self, rows):
        self.contexts = sorted({row["context"] for row in rows})
        self.low, self.high = math.log2(self.contexts[0]), math.log2(self.contexts[-1])
        # A share far over 1 is an operation that a cache served: it stays at the upper edge.
        self.top = min(1.6, max(1.0, math.ceil(5 * max(row["share"] for row in rows)) / 5))

    def x(self, context):
        span = self.high - self.low
        return WIDTH * (math.log2(context) - self.low) / span if span else WIDTH / 2

    def y(self, share):
        return HEIGHT * (1 - min(share, self.top) / self.top)


def panel(title, rows, scale, colors):
    out = [text(WIDTH / 2, -10, title, 14)]
    for tenth in range(0, round(10 * scale.top) + 1, 2):
        y = scale.y(tenth / 10)
        out += [line(0, y, WIDTH, y), text(-8, y + 4, f"{10 * tenth} %", 11, "end")]
    for context in scale.contexts:
        x = scale.x(context)
        out += [line(x, 0, x, HEIGHT), text(x, HEIGHT + 16, tokens(context), 11)]
    out.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#888"/>')
    for batch, color in colors.items():
        points = sorted((row["context"], row["share"]) for row in rows if row["batch"] == batch)
        places = [(scale.x(context), scale.y(share)) for context, share in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places]
    return "\n".join(out)


def kind_of(row):
    """The key of a panel."""
    return row["op"], row["queries"], row.get("lengths", "even")


def title_of(kind, ranks):
    op, queries, lengths = kind
    work = op if queries == 1 else f"{op} of {tokens(queries)}"
    work += "" if lengths == "even" else f", {lengths}"
    return f"{work}, {ranks} rank" + ("s" if ranks > 1 else "")


def draw(runs):
    runs = [{**run, "rows": [row for row in run["rows"] if row["share"] is not None]} for run in runs]
    known = [row for run in runs for row in run["rows"]]
    if not known:
        raise SystemExit("plot: no row has a share of a ceiling")
    kinds = list(dict.fromkeys(kind_of(row) for row in known))
    batches = sorted({row["batch"] for row in known})
    colors = {batch: COLORS[i % len(COLORS)] for i, batch in enumerate(batches)}
    scale = Scale(known)
    width = LEFT + len(kinds) * (WIDTH + GAP_X)
    height = TOP + len(runs) * (HEIGHT + GAP_Y) + BOTTOM
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
           f'viewBox="0 0 {width} {height}" font-family="sans-serif" fill="#222">',
           f'<rect width="{width}" height="{height}" fill="#fff"/>',
           text(LEFT, 30, "Share of the ceiling measured in the same run", 18, "start"),
           text(LEFT, 52, about(runs[0]), 12, "start")]
    for number, run in enumerate(runs):
        for column, kind in enumerate(kinds):
            rows = [row for row in run["rows"] if kind_of(row) == kind]
            if not rows:
                continue
            x, y = LEFT + column * (WIDTH + GAP_X), TOP + number * (HEIGHT + GAP_Y)
            mine = {batch: colors[batch] for batch in sorted({row["batch"] for row in rows})}
            out += [f'<g transform="translate({x},{y})">',
                    panel(title_of(kind, run["ranks"]), rows, scale, mine),
                    text(WIDTH / 2, HEIGHT + 36, "context, tokens of each sequence or their mean", 11), "</g>"]
    for i, (batch, color) in enumerate(colors.items()):
        x, y = LEFT + 110 * i, height - 24
        out += [f'<rect x="{x}" y="{y - 6}" width="18" height="4" fill="{color}"/>',
                text(x + 24, y, f"batch {batch}", 12, "start")]
    return "\n".join(out) + "\n</svg>\n"


def about(run):
    return (f'{run["device"]}; {run["q_heads"]}/{run["kv_heads"]} heads, dim {run["dim"]}, {run["dtype"]}, '
            f'pages of {run["page_size"]}')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", help="written by kvmesh bench --json")
    parser.add_argument("-o", "--output", required=True, help="the SVG")
    arguments = parser.parse_args()
    picture = draw(load(arguments.results))
    with open(arguments.output, "w", encoding="utf-8") as file:
        file.write(picture)


if __name__ == "__main__":
    main()
