#!/usr/bin/env python3
"""Measures kvmesh and its rivals on the same shapes on one GPU, turn by turn, and writes one table.

python3 bench/peers/run.py --kvmesh build/ci/launch/kvmesh -o peers     # peers.md and peers.json
python3 bench/peers/run.py --kvmesh ... --rows 'decode-64x8192-*' 'prefill-*' --rounds 5

A round is kvmesh's own benchmark of the row and then each rival's CUDA graph, so that changes of
the GPU's speed over time affect all alike. README.md in this folder lists the packages and the amounts.
"""

import argparse
import fnmatch
import json
import pathlib
import sys
import time

import ours
import rows
import table
from summary import of_turns

COOL_DOWN_SECONDS = 0.15  # the driver clears the memory of a program that ended, which slows others


class Rivals:
    """The rivals that can run and whose name matches a pattern; none without torch and a GPU."""

    def __init__(self, patterns):
        self.made, self.absent, self.failed = [], {}, []
        if not patterns:
            return
        try:
            import rivals
            import torch
        except ImportError as error:
            self.absent[error.name] = f"not installed ({error})"
            return
        if not torch.cuda.is_available():
            self.absent["torch"] = "sees no GPU"
            return
        made, self.absent = rivals.make_all()
        self.made = [rival for rival in made if any(fnmatch.fnmatchcase(rival.name, p) for p in patterns)]

    def prepare(self, row):
        """[(name, graph)] of the rivals whose output agrees with float64; failures are noted."""
        if not self.made:
            return []
        import torch
        from case import Case
        from timing import Graph

        case, graphs = Case(row), []
        for rival in self.made:
            if getattr(rival, "latent", False) != bool(row.latent):
                continue
            try:
                run = rival.prepare(case)
                if run is None:
                    continue
                graph = Graph(run, len(case.replicas))
                case.out.fill_(float("nan"))
                graph.replay()
                case.check(graph.last, len(case.replicas) - 1)
                graphs.append((rival.name, graph))
            except Exception as error:  # an error of one rival does not stop the others
                torch.cuda.synchronize()
                reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
                self.failed.append(f"{row.key}: {rival.name}: {type(error).__name__}: {reason}")
        return graphs

    def release(self):
        """Frees memory after a row, when its tensors have no references left."""
        if self.made:
            import torch

            torch.cuda.empty_cache()
            time.sleep(COOL_DOWN_SECONDS)


def measure(row, arguments, rivals):
    """(the row of the JSON, the machine, the reason why kvmesh has no number)."""
    result = {"key": row.key, "title": row.title, "op": row.op, "amount": row.amount, "bytes": row.bytes,
              "operations": row.operations, "rounds": {table.OURS: []}, "gather": [], "read_rate": None}
    where, problem = None, None
    graphs = rivals.prepare(row)
    result["rounds"].update({name: [] for name, _ in graphs})
    for _ in range(arguments.rounds):
        if problem is None:
            try:
                where = ours.measure(arguments.kvmesh, row, arguments.turns, arguments.device)
            except ours.Failed as error:
                problem = f"{row.key}: kvmesh: {error}"
            else:
                result["rounds"][table.OURS].append(where["seconds"])
                result["gather"] += [where["gather"]] if where["gather"] else []
                result["read_rate"] = max(filter(None, (result["read_rate"], where["read_rate"])), default=None)
        if graphs:
            time.sleep(COOL_DOWN_SECONDS)
        for name, graph in graphs:
            result["rounds"][name].append(of_turns(graph.turns(arguments.turns)))
    result["contestants"] = table.lines_of(result)
    return result, where, problem


def footer_of(report):
    place = report["where"]
    driver = f', driver {place["driver"]}' if place and place["driver"] else ""
    lines = [f'{place["device"]}{driver}, {place["versions"]}; kvmesh {place["version"]}'] if place else []
    lines.append(f'{report["rounds"]} rounds of {report["turns"]} turns each; µs: the median of the rounds\' medians, '
                 "p10–p90: the widest of a round. K, V, Q and O count once, final output in bfloat16 for all; "
                 "of prefill the visible pairs.")
    lines.append("Bare gather: a kernel that reads the same pages once and does nothing else, measured turn by turn "
                 "with kvmesh.")
    if report["versions"]:
        lines.append(", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    lines += [f"No {package}: {reason}" for package, reason in report["absent"].items()]
    return lines + [f"No number: {problem}" for problem in report["failed"]]


def versions_of(rivals):
    modules = {rival.package: sys.modules.get(rival.package) for rival in rivals.made}
    return {name: getattr(module, "__version__", "?") for name, module in modules.items()}


def write(report, output):
    """Writes the results after every row, so that an interrupted run has them."""
    text = table.markdown(report["rows"], footer_of(report))
    pathlib.Path(f"{output}.md").write_text(text, encoding="utf-8")
    pathlib.Path(f"{output}.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kvmesh", required=True, help="the program")
    parser.add_argument("--rows", nargs="*", default=[], help="keys, or patterns of them; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=15, help="of a round")
    parser.add_argument("--device", default="cuda", help="kvmesh's: cpu tries the script itself")
    parser.add_argument("--rivals", nargs="*", default=["*"],
                        help="names, or patterns of them; none: kvmesh alone. A rival that breaks the "
                             "process's CUDA context is measured in a run of its own")
    parser.add_argument("-o", "--output", default="peers", help="OUTPUT.md and OUTPUT.json")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.turns < 1:
        parser.error("--rounds and --turns must be positive")

    chosen = rows.select(arguments.rows)
    rivals = Rivals(arguments.rivals)
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    report = {"program": "bench/peers/run.py", "command": sys.argv, "date": date, "rounds": arguments.rounds,
              "turns": arguments.turns, "where": None, "versions": versions_of(rivals), "absent": rivals.absent,
              "failed": rivals.failed, "rows": []}
    for row in chosen:
        result, where, problem = measure(row, arguments, rivals)
        rivals.release()
        if where:
            report["where"] = {name: where[name] for name in ("device", "driver", "versions", "version")}
        report["failed"] += [problem] if problem else []
        report["rows"].append(result)
        text = write(report, arguments.output)
        print(row.key, flush=True)
    print(text)
    return 1 if any(not result["rounds"][table.OURS] for result in report["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
