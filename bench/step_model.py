#!/usr/bin/env python3
"""Fits the model of step time (launch/capacity/step_model.hpp) to measured points, and draws both.

python3 bench/step_model.py bench/step_points.json                          # the constants, and each point
python3 bench/step_model.py bench/step_points.json --kvmesh PROGRAM -o docs/scaling.svg

The fit minimises the squared relative errors of

  attend  = launch + bytes of the fullest GPU / read rate
  combine = start + bytes that a GPU sends / send rate      (each way has its own)
  step    = attend + append + combine                       (no combine on one GPU)

The picture shows measurements as points and the program's predictions as lines. Needs only Python.
"""

import argparse
import json
import math
import subprocess

DIM, ELEMENT = 128, 2
GPUS = (1, 2, 4, 8, 16, 32, 72)
PARTIAL_BYTES = {"peer": 2, "nccl": 4}  # per element
NAMES = ("launch_us", "us_per_read_byte", "append_us",
         *(f"{way}_{name}" for way in PARTIAL_BYTES for name in ("start_us", "us_per_sent_byte")))


def lengths_of(text):
    lengths = []
    for part in text.split(","):
        count, star, tokens = part.rpartition("*")
        lengths += [int(tokens)] * (int(count) if star else 1)
    return lengths


def combine_terms(point, rows):
    """Each row is sent with its LSE, of four bytes; rows that stay with their owners are not combined."""
    gpus, mine = point["gpus"], []
    for way, element in PARTIAL_BYTES.items():
        takes_part = point.get("way") == way and point.get("scatter") != "owner"
        mine += [takes_part, takes_part * rows * (gpus - 1) / gpus * (element * DIM + 4)]
    return mine


def terms(point):
    """The factor of each constant."""
    if point["op"] == "combine":
        return [0, 0, 0, *combine_terms(point, point["rows"])]
    lengths = lengths_of(point["lengths"])
    read = sum(lengths) / point["gpus"] * point["kv_heads"] * 2 * DIM * ELEMENT
    return [1, read, point["op"] == "step", *combine_terms(point, len(lengths) * point["q_heads"])]


def solve(matrix, right):
    """Solves by Gaussian elimination, with pivots."""
    rows = [row + [value] for row, value in zip(matrix, right)]
    for i in range(len(rows)):
        pivot = max(range(i, len(rows)), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(len(rows)):
            if r != i:
                factor = rows[r][i] / rows[i][i]
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[i])]
    return [row[-1] / row[i] for i, row in enumerate(rows)]


def fit(points):
    scaled = [[term / point["us"] for term in terms(point)] for point in points]
    normal = [[sum(row[i] * row[j] for row in scaled) for j in range(len(NAMES))] for i in range(len(NAMES))]
    return dict(zip(NAMES, solve(normal, [sum(row[i] for row in scaled) for i in range(len(NAMES))])))


def predicted(model, point):
    return sum(term * model[name] for term, name in zip(terms(point), NAMES))


def program_prediction(kvmesh, batch, context, gpus, heads=(64, 8)):
    command = [kvmesh, "plan-capacity", "--q-heads", heads[0], "--kv-heads", heads[1], "--dim", DIM, "--layers", 1,
               "--batch", batch, "--context", context, "--gpus", gpus, "--json"]
    answer = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
    return json.loads(answer)["us_per_layer"]


# ---- the picture: speed against the number of GPUs, both logarithmic

WIDTH, HEIGHT, LEFT, TOP = 560, 330, 70, 60
COLORS = {(1, 8192): "#3366cc", (1, 131072): "#dc3912", (8, 32768): "#109618", (64, 8192): "#ff9900"}


def place(gpus, us):
    x = LEFT + WIDTH * math.log(gpus) / math.log(GPUS[-1])
    return x, TOP + HEIGHT * (1 - math.log(us / 10) / math.log(100))


def text(x, y, words, anchor="middle"):
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" text-anchor="{anchor}">{words}</text>'


def line(x1, y1, x2, y2, color="#ddd"):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>'


def draw(points, predict):
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 200} {HEIGHT + 130}" '
           'font-family="sans-serif" fill="#222">', '<rect width="100%" height="100%" fill="#fff"/>',
           text(LEFT, 30, "A step of one layer: measured (points) and predicted (lines), microseconds", "start")]
    for gpus in GPUS:
        x, _ = place(gpus, 10)
        out += [line(x, TOP, x, TOP + HEIGHT), text(x, TOP + HEIGHT + 18, gpus)]
    for us in (10, 20, 50, 100, 200, 500, 1000):
        _, y = place(1, us)
        out += [line(LEFT, y, LEFT + WIDTH, y), text(LEFT - 8, y + 4, us, "end")]
    out.append(text(LEFT + WIDTH / 2, TOP + HEIGHT + 42, "GPUs of one NVLink domain"))
    for number, ((batch, context), color) in enumerate(COLORS.items()):
        path = " ".join("{:.1f},{:.1f}".format(*place(gpus, predict(batch, context, gpus))) for gpus in GPUS)
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        name = f"{batch} x {context}"
        out.append(text(LEFT + WIDTH + 20, TOP + 20 + 22 * number, name, "start").replace("<text", f'<text fill="{color}"'))
        for point in points:
            is_drawn = point["op"] == "step" and point.get("way") != "nccl"
            lengths = lengths_of(point["lengths"]) if is_drawn else []
            if lengths == [context] * batch:
                x, y = place(point["gpus"], point["us"])
                out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{color}"/>')
    return "\n".join(out) + "\n</svg>\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("points", help="what was measured")
    parser.add_argument("--kvmesh", help="the program, to draw what it predicts")
    parser.add_argument("-o", "--output", help="the SVG")
    arguments = parser.parse_args()
    with open(arguments.points, encoding="utf-8") as file:
        points = json.load(file)["points"]
    model = fit(points)
    print("  ".join(f"{name} {value:.4g}" for name, value in model.items()))
    for point in points:
        us = predicted(model, point)
        print(f'{point["op"]:8} {point["gpus"]} GPUs {point.get("way", ""):5} {point.get("lengths", point.get("rows"))!s:14}'
              f'{point["us"]:8.1f}{us:8.1f}{100 * (us / point["us"] - 1):+7.1f} %')
    if arguments.output:
        with open(arguments.output, "w", encoding="utf-8") as file:
            file.write(draw(points, lambda *case: program_prediction(arguments.kvmesh, *case)))


if __name__ == "__main__":
    main()
