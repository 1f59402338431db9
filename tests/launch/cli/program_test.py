"""`kvmesh generate` from the outside, on a miniature model: the same text on any number of ranks, and
every user's error one line, exit status 2, no hang.

program_test.py KVMESH MAKE_TINY_MODEL MPIEXEC
"""

import os
import pathlib
import pty
import socket
import struct
import subprocess
import sys
import tempfile
import unittest

KVMESH, MAKE_TINY_MODEL, MPIEXEC = sys.argv.pop(1), sys.argv.pop(1), sys.argv.pop(1)


def run(ranks, *arguments):
    command = [KVMESH, *map(str, arguments)]
    if ranks > 1:
        command = [MPIEXEC, "-q", "--oversubscribe", "--bind-to", "none", "-np", str(ranks), *command]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_without_mpi(ranks, *arguments, **environment):
    """Each rank started by hand, as engines do; they meet by TCP. One result a rank."""
    rendezvous = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            [KVMESH, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace",
            env={**os.environ, "KVMESH_RANK": str(rank), "KVMESH_SIZE": str(ranks),
                 "KVMESH_RENDEZVOUS": rendezvous, **environment})
        for rank in range(ranks)
    ]
    done = []
    for process in started:
        stdout, stderr = process.communicate(timeout=60)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr))
    return done


class Generate(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.model = pathlib.Path(cls.folder.name) / "tiny.gguf"
        subprocess.run([MAKE_TINY_MODEL, cls.model], check=True)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def generate(self, ranks, *arguments, model=None):
        return run(ranks, "generate", "--device", "cpu", "--model", model or self.model,
                   "--max-tokens", 24, *arguments)

    def text(self, ranks, *arguments):
        """What the model wrote: all before the report."""
        done = self.generate(ranks, "--prompt", "hello", *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.split(" prompt tokens in ")[0].rsplit("\n", 1)[0]

    def damaged(self, name, change):
        path = pathlib.Path(self.folder.name) / name
        path.write_bytes(change(self.model.read_bytes()))
        return path

    @staticmethod
    def with_fewer_rows(model):
        """The embeddings lack the last token's row."""
        at = model.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 8
        rows = struct.unpack_from("<Q", model, at)[0]
        return model[:at] + struct.pack("<Q", rows - 1) + model[at + 8 :]

    def expect_one_line(self, done, *words):
        self.assertEqual(done.returncode, 2, done.stdout + done.stderr)
        lines = [line for line in done.stderr.splitlines() if line.startswith("kvmesh: ")]
        self.assertEqual(len(lines), 1, done.stderr)
        for word in words:
            self.assertIn(word, lines[0])
        self.assertNotIn("terminate called", done.stderr)

    def test_text_is_the_same_on_any_number_of_ranks(self):
        alone = self.text(1)
        for ranks in (2, 3, 4):
            self.assertEqual(self.text(ranks), alone)

    def test_sampled_text_depends_on_the_seed_alone(self):
        sampled = ("--temperature", "1.0", "--top-k", "20", "--seed", "7")
        alone = self.text(1, *sampled)
        self.assertEqual(self.text(3, *sampled, "--placement", "striped"), alone)
        self.assertNotEqual(self.text(1, *sampled[:-1], "8"), alone)

    def test_heads_can_be_shared_out_too(self):
        self.assertEqual(self.text(4, "--head-parallel", "2"), self.text(1))

    def test_ranks_check_and_report(self):
        done = self.generate(4, "--prompt", "hello", "--ranks-check", "--page-size", 4)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("4 ranks and a single rank wrote the same tokens", done.stdout)
        self.assertIn("the combine moved ", done.stdout)
        for rank in range(4):
            self.assertRegex(done.stdout, rf"rank {rank} +#+ +[1-9]\d* pages")

    def test_a_fraction_of_the_memory(self):
        done = self.generate(2, "--prompt", "hello", "--memory-fraction", "1e-4")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"room for [1-9]\d* pages a rank, in \d")
        for ranks in (1, 3):
            nothing = self.generate(ranks, "--prompt", "hi", "--memory-fraction", "1e-15")
            self.expect_one_line(nothing, "no memory", "bytes")
            both = self.generate(
                ranks, "--prompt", "hi", "--memory-fraction", "0.1", "--pages-per-rank", 9)
            self.expect_one_line(both, "pages_per_rank (9)", "memory_fraction (0.1)")

    def test_errors_of_the_file(self):
        cut = self.damaged("cut.gguf", lambda b: b[: len(b) // 2])
        other = self.damaged("other.gguf", lambda b: b.replace(b"llama", b"mamba"))
        fewer = self.damaged("fewer.gguf", self.with_fewer_rows)
        for ranks in (1, 3):
            missing = self.generate(ranks, "--prompt", "hi", model="/nowhere/model.gguf")
            self.expect_one_line(missing, "/nowhere/model.gguf")
            self.expect_one_line(self.generate(ranks, "--prompt", "hi", model=cut), "truncated")
            self.expect_one_line(self.generate(ranks, "--prompt", "hi", model=other), "mamba", "llama")
            self.expect_one_line(self.generate(ranks, "--prompt", "hi", model=fewer),
                                 "tokens in the vocabulary", "rows in token_embd.weight")

    def test_errors_of_the_flags(self):
        for ranks in (1, 3):
            self.expect_one_line(self.generate(ranks, "--prompt", "hi", "--wrong"), "--wrong")
            self.expect_one_line(self.generate(ranks), "--prompt is required")
            self.expect_one_line(self.generate(ranks, "--prompt", "hi", "--placement", "x"), "striped")
            self.expect_one_line(self.generate(ranks, "--prompt", "hi", "--kv-dtype", "int4"), "bfloat16")
            self.expect_one_line(run(ranks, "generate", "--model", self.model, "--prompt", "hi",
                                     "--max-tokens", 2**63 - 1), "more than the model's context")
        for ranks in ("-2", "0"):
            self.expect_one_line(run(1, "verify", "--ranks", ranks), "--ranks", f"{ranks} not in range")
        self.expect_one_line(self.generate(3, "--prompt", "hi", "--head-parallel", "3"),
                             "2 kv heads do not divide over head_parallel 3")
        self.expect_one_line(self.generate(3, "--prompt", "hi", "--head-parallel", "2"),
                             "head_parallel 2 does not divide 3 ranks")

    def test_a_process_started_alone_is_no_job_of_mpi(self):
        self.assertRegex(run(1, "info").stdout, r"this job +1 rank \(loopback\)")
        self.assertRegex(run(2, "info").stdout, r"this job +2 ranks \(mpi\)")

    def test_verify_shows_its_progress_in_place_on_a_terminal(self):
        try:
            terminal, output = pty.openpty()
        except OSError as error:  # a container without /dev/pts
            self.skipTest(f"no terminal to be had: {error}")
        self.addCleanup(os.close, terminal)
        subprocess.run([KVMESH, "verify", "--device", "cpu", "--count", "1"], stdout=output,
                       check=True, timeout=60)
        os.close(output)
        self.assertRegex(os.read(terminal, 65536).decode(),
                         r"\rverify: 1 cases, .* on 1 rank \(cpu\): all right\x1b\[K\r\n$")

    def test_ranks_meet_without_mpi(self):
        for done in run_without_mpi(3, "verify", "--device", "cpu", "--count", 3):
            self.assertEqual(done.returncode, 0, done.stderr)
        ranks = run_without_mpi(2, "generate", "--device", "cpu", "--model", self.model,
                                "--max-tokens", 24, "--prompt", "hello", "--ranks-check")
        for done in ranks:
            self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("2 ranks and a single rank wrote the same tokens", ranks[0].stdout)
        self.assertEqual(ranks[1].stdout, "")

    def test_errors_of_ranks_without_mpi(self):
        for name, value, word in (("KVMESH_SIZE", "two", "KVMESH_SIZE is 'two'"),
                                  ("KVMESH_SIZE", "1", "ranks are 0 to 0"),
                                  ("KVMESH_RENDEZVOUS", "localhost", "not host:port"),
                                  ("KVMESH_RENDEZVOUS", "", "there is no KVMESH_RENDEZVOUS")):
            last = run_without_mpi(2, "info", **{name: value})[-1]
            self.expect_one_line(last, "rank 1: ", word)

    def test_pool_too_small_for_the_prompt(self):
        for ranks in (1, 3):
            small = self.generate(ranks, "--prompt", "hello " * 30, "--pages-per-rank", 1)
            self.expect_one_line(small, "out of pages", "--pages-per-rank")


if __name__ == "__main__":
    unittest.main(verbosity=2)
