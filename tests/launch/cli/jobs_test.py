"""`kvmesh verify --jobs`: several processes run the cases of one, and none of them is lost in silence.

jobs_test.py KVMESH MAKE_TINY_MODEL MPIEXEC
"""

import json
import os
import pathlib
import signal
import subprocess
import time
import unittest

from program import KVMESH, ProgramTest, run, wait_until_caught

VERIFY = ("verify", "--device", "cpu")


def is_running(pid):
    try:
        return "\nState:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


class Jobs(ProgramTest):
    def start(self, *arguments):
        process = subprocess.Popen([KVMESH, *VERIFY, "--jobs", "3", "--seconds", "50", *arguments],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        for stream in (process.stdout, process.stderr):
            self.addCleanup(stream.close)
        self.addCleanup(process.kill)
        wait_until_caught(process.pid, signal.SIGINT)
        end = time.monotonic() + 30
        while len(self.workers(process)) < 3 and time.monotonic() < end:
            time.sleep(0.02)
        self.assertEqual(len(self.workers(process)), 3)
        return process

    @staticmethod
    def workers(process):
        text = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    def test_the_cases_are_those_of_one_process(self):
        for how in ((), ("--ranks", 2, "--head-parallel", 2), ("--ranks", 2, "--reproducible")):
            one, three = (json.loads(run(1, *VERIFY, "--seed", 5, "--count", 8, "--jobs", jobs, *how, "--json").stdout)
                          for jobs in (1, 3))
            self.assertEqual((one.pop("jobs"), three.pop("jobs")), (1, 3))
            self.assertGreater(one.pop("seconds") + three.pop("seconds"), 0)
            self.assertEqual(one, three)

    def test_a_worker_that_dies_is_a_failure_of_its_case(self):
        process = self.start("--seed", "7")
        os.kill(self.workers(process)[1], signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=30)
        self.assertEqual(process.returncode, 1, stderr)
        self.assertRegex(stdout, r"^verify: \d+ cases, .* on 1 rank \(cpu\) in 3 processes: 1 FAILED\n$")
        self.assertRegex(stderr, r"verify: the process of seed (\d+) ended: signal 9 \(Killed\)\n"
                                 r"  again: kvmesh verify --device cpu --seed \1 --count 1\n")

    def test_a_worker_that_stops_is_a_failure_of_its_case(self):
        process = self.start("--seed", "7", "--timeout", "2")
        stopped = self.workers(process)[1]
        os.kill(stopped, signal.SIGSTOP)
        stdout, stderr = process.communicate(timeout=30)
        self.assertEqual(process.returncode, 1, stderr)
        self.assertRegex(stdout, r"in 3 processes: 1 FAILED\n$")
        self.assertRegex(stderr, r"verify: the process of seed (\d+) was stopped for 2 s, and killed\n"
                                 r"  again: kvmesh verify --device cpu --seed \1 --count 1\n")
        self.assertFalse(is_running(stopped))

    def test_a_worker_that_goes_on_is_no_failure(self):
        process = self.start("--timeout", "4")
        for _ in range(2):  # longer than that together
            for worker in self.workers(process):
                os.kill(worker, signal.SIGSTOP)
            time.sleep(2.5)
            for worker in self.workers(process):
                os.kill(worker, signal.SIGCONT)
            time.sleep(1.5)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=30)
        self.assertRegex(stdout, r"interrupted: all right\n$")
        self.assertNotIn("stopped", stderr)

    def test_an_interrupt_ends_all_with_the_total(self):
        for send in (lambda process: process.send_signal(signal.SIGTERM),
                     lambda process: os.killpg(process.pid, signal.SIGTERM)):  # as a terminal does
            process = self.start()
            workers = self.workers(process)
            send(process)
            stdout, stderr = process.communicate(timeout=30)
            self.assertRegex(stdout, r"^verify: [1-9]\d* cases, .*: interrupted: all right\n$")
            self.assertEqual((process.returncode, stderr), (128 + signal.SIGTERM, ""))
            self.assertFalse(any(map(is_running, workers)))

    def test_workers_end_with_the_process_that_started_them(self):
        process = self.start()
        workers = self.workers(process)
        process.kill()
        process.wait()
        end = time.monotonic() + 30
        while any(map(is_running, workers)) and time.monotonic() < end:
            time.sleep(0.02)
        self.assertFalse(any(map(is_running, workers)))

    def test_errors(self):
        self.expect_one_line(run(3, *VERIFY, "--jobs", 2), "--jobs 2 under Open MPI")
        self.expect_one_line(run(1, *VERIFY, "--jobs", 0), "--jobs", "0 not in range")
        self.expect_one_line(run(1, *VERIFY, "--jobs", 2, "--head-parallel", 3), "head_parallel 3 does not divide")
        self.expect_one_line(run(1, *VERIFY, "--jobs", 2, "--count", -1), "--count: -1 is not above 0")
        with open("/dev/full", "w") as full:
            done = run(1, *VERIFY, "--jobs", 2, "--count", 2, stdout=full)
            self.expect_one_line(done, "cannot write standard output", "No space left")


if __name__ == "__main__":
    unittest.main(verbosity=2)
