"""One row by kvmesh's own benchmark."""

import json
import pathlib
import subprocess
import tempfile


LARGEST_ERROR = 0.02  # as case.py's


class Failed(Exception):
    """There is no number; the message is the reason."""


def spread(seconds):
    return {name: seconds[name] for name in ("median", "p10", "p90")}


def measure(program, row, repeats, device="cuda", more=()):
    """A round: the summaries of kvmesh and of the bare gather (None without one), the read's bytes per
    second (None without one), and the machine. Throws Failed."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "row.json"
        command = [program, "bench", "--device", device, *row.flags(), "--repeats", str(repeats)]
        command += ["--json", str(file), *more]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Failed(str(error)) from error
        if done.returncode != 0:
            words = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
            raise Failed(words.splitlines()[-1])
        result = json.loads(file.read_text(encoding="utf-8"))
    if not result["rows"]:
        raise Failed(result["skipped"][0]["reason"] if result["skipped"] else "no row")
    measured = result["rows"][0]
    if measured["amount"] != row.amount:
        raise Failed(f'kvmesh counts {measured["amount"]:.0f} {measured["unit"]}, not {row.amount}: other shapes')
    error = measured["error"]  # a NaN is null in JSON
    if error is None or error > LARGEST_ERROR:
        raise Failed(f"its output is off by {error} of the largest number of a row")
    gather = measured["read"] is not None  # then the ceiling is the gather
    return {"seconds": spread(measured["seconds"]),
            "gather": spread(measured["ceiling"]["seconds"]) if gather else None,
            "read_rate": measured["read"]["rate"] if gather else None,
            "device": result["device"], "driver": result["driver"], "versions": result["versions"],
            "version": result["version"]}
