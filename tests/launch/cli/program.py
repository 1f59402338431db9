"""What the tests of the program share: how it is started, alone, under mpirun or by hand, a miniature
model for it, and what every error of a user looks like.

TEST KVMESH MAKE_TINY_MODEL MPIEXEC [unittest's arguments]
"""

import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import unittest

KVMESH, MAKE_TINY_MODEL, MPIEXEC = sys.argv.pop(1), sys.argv.pop(1), sys.argv.pop(1)
MPIRUN = [MPIEXEC, "-q", "--oversubscribe", "--bind-to", "none"]


def command(ranks, *arguments):
    alone = [KVMESH, *map(str, arguments)]
    return alone if ranks == 1 else [*MPIRUN, "-np", str(ranks), *alone]


def run_command(line, **options):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(line, text=True, errors="replace", timeout=60, **streams)


def run(ranks, *arguments, **options):
    return run_command(command(ranks, *arguments), **options)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_without_mpi(ranks, *arguments, more=(), **environment):
    """Each rank started by hand, as engines do; they meet by TCP. One result a rank. `more`: arguments of
    the last rank alone."""
    rendezvous = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            [KVMESH, *map(str, arguments), *(map(str, more) if rank == ranks - 1 else ())],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
            env={**os.environ, "KVMESH_RANK": str(rank), "KVMESH_SIZE": str(ranks),
                 "KVMESH_RENDEZVOUS": rendezvous, **environment})
        for rank in range(ranks)
    ]
    done = []
    for process in started:
        stdout, stderr = process.communicate(timeout=60)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr))
    return done


def wait_until_caught(pid, number, seconds=30):
    """Until the process catches the signal; here a sign of `verify` that it has begun."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
        except OSError:
            status = ""
        caught = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:")]
        if caught and caught[0] >> (number - 1) & 1:
            return
        time.sleep(0.05)
    raise TimeoutError(f"process {pid} does not catch signal {number}")


class ProgramTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.model = pathlib.Path(cls.folder.name) / "tiny.gguf"
        subprocess.run([MAKE_TINY_MODEL, cls.model], check=True)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def arguments(self, *arguments, model=None, tokens=24):
        return ("generate", "--device", "cpu", "--model", model or self.model, "--max-tokens", tokens, *arguments)

    def generate(self, ranks, *arguments, model=None, tokens=24, **options):
        return run(ranks, *self.arguments(*arguments, model=model, tokens=tokens), **options)

    def text(self, ranks, *arguments, **options):
        done = self.generate(ranks, "--prompt", "hello", *arguments, **options)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def damaged(self, name, change):
        path = pathlib.Path(self.folder.name) / name
        path.write_bytes(change(self.model.read_bytes()))
        return path

    def expect_one_line(self, done, *words):
        self.assertEqual(done.returncode, 2, f"{done.stdout}{done.stderr}")
        lines = [line for line in done.stderr.splitlines() if line.startswith("kvmesh: ")]
        self.assertEqual(len(lines), 1, done.stderr)
        for word in words:
            self.assertIn(word, lines[0])
        self.assertNotIn("terminate called", done.stderr)
