"""Ranks that are given different things, or fail alone: every rank ends, and the error names the rank and
what it is about.

agreement_test.py KVMESH MAKE_TINY_MODEL MPIEXEC
"""

import os
import pathlib
import signal
import subprocess
import time
import unittest

from program import (KVMESH, MAKE_TINY_MODEL, MPIRUN, ProgramTest, free_port, run_command,
                     run_without_mpi, wait_until_caught)


class Agreement(ProgramTest):
    def run_two(self, first, second):
        """Two ranks, each with arguments of its own."""
        return run_command([*MPIRUN, "-np", "1", KVMESH, *map(str, first), ":", "-np", "1", KVMESH,
                            *map(str, second)])

    def test_ranks_with_other_flags(self):
        common = self.arguments("--prompt", "hello")
        for flags, words in ((("--page-size", 8), ("--page-size '8'", "'16'")),
                             (("--seed", 5), ("--seed '5'", "'0'")),
                             (("--kv-dtype", "float16"), ("--kv-dtype 'float16'", "'bfloat16'")),
                             (("--raw",), ("--raw 'true'", "''")),
                             (("--head-parallel", 2), ("--head-parallel '2'", "'1'"))):
            self.expect_one_line(self.run_two(common, (*common, *flags)), "rank 1 has ", *words)
        prompts = self.run_two(common, self.arguments("--prompt", "hallo"))
        self.expect_one_line(prompts, "rank 1 has --prompt 'hallo'", "rank 0 has 'hello'")
        self.expect_one_line(self.run_two(common, ("info",)), "rank 1 has the command", "info", "generate")

    def test_long_texts_are_shown_from_where_they_differ(self):
        once = "once " * 30
        first, second, short = (self.arguments("--prompt", once + end)
                                for end in ("then, upon a time, there was a rank with a long prompt", "they, too", ""))
        self.expect_one_line(self.run_two(first, second), "rank 1 has --prompt '...ce once once they, too', rank 0 has "
                             "'...ce once once then, upon a time, there was a ran...'")
        self.expect_one_line(self.run_two(first, short), "rank 1 has --prompt '... once once once ', rank 0 has "
                             "'... once once once then, upon a time, there was a ...'")

    def test_what_may_differ(self):
        copy = self.damaged("copy.gguf", lambda b: b)
        done = self.run_two(self.arguments("--prompt", "hello"),
                            self.arguments("--prompt", "hello", "--threads", 1, "--timeout", 50, model=copy))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, self.text(1))

    def test_ranks_with_other_models(self):
        """One weight differs by one bit."""
        other = self.damaged("bit.gguf", lambda b: b[:-40] + bytes([b[-40] ^ 1]) + b[-39:])
        done = self.run_two(self.arguments("--prompt", "hi"), self.arguments("--prompt", "hi", model=other))
        self.expect_one_line(done, "rank 1 has a model file of", "hash", "rank 0 has")

    def test_a_rank_with_wrong_flags_of_its_own(self):
        common = self.arguments("--prompt", "hello")
        self.expect_one_line(self.run_two(common, (*common, "--wrong")), "rank 1: ", "--wrong")
        ranks = run_without_mpi(2, *common, "--timeout", 5, more=["--kv-dtype", "int4"])
        self.expect_one_line(ranks[1], "rank 1: ", "int4")
        self.assertEqual(ranks[0].returncode, 2)
        ranks = run_without_mpi(2, *common, more=["--page-size", 8])
        self.expect_one_line(ranks[0], "rank 1 has --page-size '8'")
        self.assertEqual(ranks[1].returncode, 2)

    def test_a_rank_without_the_model(self):
        done = self.run_two(self.arguments("--prompt", "hi"),
                            self.arguments("--prompt", "hi", model="/nowhere/model.gguf"))
        self.expect_one_line(done, "rank 1: /nowhere/model.gguf")

    def test_a_rank_that_stops(self):
        marker = pathlib.Path(self.folder.name) / "rank1.pid"
        script = f'[ "$OMPI_COMM_WORLD_RANK" = 1 ] && echo $$ > "{marker}"; exec "$@"'
        verify = [KVMESH, "verify", "--device", "cpu", "--seconds", "60", "--timeout", "5"]
        job = subprocess.Popen([*MPIRUN, "-np", "2", "sh", "-c", script, "sh", *verify],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
        try:
            end = time.monotonic() + 30
            while not (marker.exists() and marker.read_text()) and time.monotonic() < end:
                time.sleep(0.05)
            rank1 = int(marker.read_text())
            wait_until_caught(rank1, signal.SIGINT)
            os.kill(rank1, signal.SIGSTOP)
            _, stderr = job.communicate(timeout=25)
        finally:
            job.kill()
        self.assertNotEqual(job.returncode, 0)
        self.assertRegex(stderr, r"kvmesh: rank 0: rank 0 waited 5000 ms in .* for rank 1")

    def test_a_rank_that_stops_during_the_ranks_check(self):
        """Rank 1 stops while rank 0 repeats the run alone, which here takes about a second."""
        model = pathlib.Path(self.folder.name) / "deep.gguf"
        subprocess.run([MAKE_TINY_MODEL, model, "32", "2048"], check=True)
        arguments = self.arguments("--prompt", "hello", "--ranks-check", "--timeout", 5, model=model,
                                   tokens=1000)
        rendezvous = f"127.0.0.1:{free_port()}"
        ranks = [subprocess.Popen([KVMESH, *map(str, arguments)], stdout=subprocess.DEVNULL,
                                  stderr=subprocess.PIPE, text=True, errors="replace",
                                  env={**os.environ, "KVMESH_RANK": str(rank), "KVMESH_SIZE": "2",
                                       "KVMESH_RENDEZVOUS": rendezvous})
                 for rank in range(2)]
        try:
            for line in ranks[0].stderr:
                if " prompt tokens in " in line:
                    break
            ranks[1].send_signal(signal.SIGSTOP)
            ranks[0].wait(timeout=25)
            stderr = ranks[0].stderr.read()
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
                rank.stderr.close()
        self.assertEqual(ranks[0].returncode, 2)
        self.assertIn("rank 0 waited 5000 ms in ranks check for rank 1", stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
