"""The table of a comparison: a line for each row and contestant."""

from summary import of_rounds

OURS = "kvmesh"
TIMES = ["who", "µs", "p10–p90"]
HEAD = {"decode": ["decode, pages of 16 unless said", *TIMES, "GB/s", "÷ best rival", "of bare gather"],
        "prefill": ["prefill, causal", *TIMES, "TFLOP/s", "÷ best rival"]}


def digits(value):
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def lines_of(row):
    """The results of each contestant of a row, by name; kvmesh first, rivals by their time.

    `row["rounds"]` has the summaries of each contestant's rounds, `row["gather"]` the bare gather's."""
    seconds = {name: of_rounds(rounds) for name, rounds in row["rounds"].items() if rounds}
    rivals = sorted((time["median"], name) for name, time in seconds.items() if name != OURS)
    gather = of_rounds(row["gather"])["median"] if row["gather"] else None
    lines = {}
    for name in ([OURS] if OURS in seconds else []) + [name for _, name in rivals]:
        time = seconds[name]
        others = [rival for rival in rivals if rival[1] != name]
        lines[name] = {"seconds": time, "rate": row["amount"] / time["median"],
                       "to_best_rival": time["median"] / others[0][0] if others else None,
                       "share_of_gather": gather / time["median"] if gather else None}
    return lines


def cells_of(op, title, name, line):
    time = line["seconds"]
    scale = 1e-9 if op == "decode" else 1e-12
    cells = [title, name, digits(1e6 * time["median"]), f'{digits(1e6 * time["p10"])}–{digits(1e6 * time["p90"])}',
             digits(scale * line["rate"]), "–" if line["to_best_rival"] is None else f'{line["to_best_rival"]:.3f}']
    if op == "decode":
        cells.append("–" if line["share_of_gather"] is None else f'{100 * line["share_of_gather"]:.1f} %')
    return cells


def ceilings_of(row):
    """The cells of the bare gather and of the streaming read."""
    cells = []
    if row["gather"]:
        time = of_rounds(row["gather"])
        spread = f'{digits(1e6 * time["p10"])}–{digits(1e6 * time["p90"])}'
        rate = digits(1e-9 * row["amount"] / time["median"])
        cells.append(["", "*bare gather*", digits(1e6 * time["median"]), spread, rate, "", ""])
    if row["read_rate"]:
        cells.append(["", "*streaming read*", "", "", digits(1e-9 * row["read_rate"]), "", ""])
    return cells


def markdown(rows, footer):
    parts = []
    for op, head in HEAD.items():
        lines = []
        for row in (row for row in rows if row["op"] == op):
            title = row["title"]
            for name, line in lines_of(row).items():
                lines.append(cells_of(op, title, name, line))
                title = ""
            lines += ceilings_of(row)
        if lines:
            parts.append("\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *lines]))
    return "\n\n".join(parts + ["\n".join(f"- {line}" for line in footer)]) + "\n"
