"""Ranks that launchers other than mpirun start, with the launchers' own variables, and ranks that stop where MPI
waits for all.

launcher_test.py KVMESH MAKE_TINY_MODEL MPIEXEC
"""

import os
import pathlib
import subprocess
import time
import unittest

from program import KVMESH, MPIRUN, ProgramTest, free_port, run_command

LAUNCHERS = ("KVMESH_", "OMPI_COMM", "PMI_", "PMIX_", "SLURM_", "RANK", "WORLD_SIZE", "MASTER_", "TORCHELASTIC")
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}


def fan_out(ranks, variables_of, *arguments):
    """As srun does: a process per task, each with its own variables. One result per rank."""
    started = [subprocess.Popen([KVMESH, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True, env={**CLEAN, **variables_of(rank)}) for rank in range(ranks)]
    done = []
    for process in started:
        stdout, stderr = process.communicate(timeout=60)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr))
    return done


def task_of_slurm(size, **more):
    port = free_port()
    return lambda rank: {"SLURM_PROCID": str(rank), "SLURM_NTASKS": str(size), "SLURM_LOCALID": str(rank),
                         "SLURM_JOB_ID": "71", "SLURM_STEP_ID": "0", "SLURM_STEPID": "0",
                         "SLURM_STEP_NODELIST": "localhost", "KVMESH_PORT": str(port), **more}


def worker_of_torchrun(size, **more):
    port = free_port() % 20000 + 20000
    return lambda rank: {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank),
                         "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                         "TORCHELASTIC_RUN_ID": "none", **more}


class Launchers(ProgramTest):
    def expect_a_mesh_by_tcp(self, ranks):
        for done in ranks:
            self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(ranks[0].stdout, rf"this job +{len(ranks)} ranks \(tcp\)")
        for done in ranks[1:]:
            self.assertEqual(done.stdout, "")

    def test_plain_srun_is_one_mesh(self):
        self.expect_a_mesh_by_tcp(fan_out(4, task_of_slurm(4), "info"))
        self.expect_a_mesh_by_tcp(fan_out(2, task_of_slurm(2, KVMESH_SECRET="open sesame"), "info"))

    def test_torchrun_is_one_mesh(self):
        self.expect_a_mesh_by_tcp(fan_out(3, worker_of_torchrun(3), "info"))

    def test_one_task_is_alone(self):
        for variables_of in (task_of_slurm(1), worker_of_torchrun(1)):
            [done] = fan_out(1, variables_of, "info")
            self.assertRegex(done.stdout, r"this job +1 rank \(loopback\)")

    def test_tasks_that_cannot_meet_say_what_to_do(self):
        """PMI of another MPI: each process would be a mesh of one."""
        [done] = fan_out(1, lambda rank: {"PMI_RANK": "2", "PMI_SIZE": "4"}, "info")
        self.expect_one_line(done, "rank 2: ", "PMI started 4 ranks", "KVMESH_RENDEZVOUS")
        nowhere = task_of_slurm(4, SLURM_STEP_NODELIST="")
        [done] = fan_out(1, nowhere, "info")
        self.expect_one_line(done, "Slurm started 4 ranks", "KVMESH_RENDEZVOUS")

    def test_a_rendezvous_joins_ranks_of_any_launcher(self):
        place = f"127.0.0.1:{free_port()}"
        ranks = fan_out(2, lambda rank: {"PMI_RANK": str(rank), "PMI_SIZE": "2", "KVMESH_RENDEZVOUS": place}, "info")
        self.expect_a_mesh_by_tcp(ranks)
        done = run_command([*MPIRUN, "-np", "2", "-x", "KVMESH_SECRET", KVMESH, "info"],
                           env={**CLEAN, "KVMESH_RENDEZVOUS": f"127.0.0.1:{free_port()}", "KVMESH_SECRET": "x"})
        self.assertRegex(done.stdout, r"this job +2 ranks \(tcp\)")

    def test_a_variable_that_is_wrong_is_named(self):
        for variables, words in (({"SLURM_NTASKS": "four"}, "SLURM_NTASKS is 'four'"),
                                 ({"SLURM_LOCALID": "-1"}, "SLURM_LOCALID is -1"),
                                 ({"KVMESH_SECRET_FILE": "/nowhere"}, "KVMESH_SECRET_FILE: cannot read")):
            [done] = fan_out(1, task_of_slurm(4, **variables), "info")
            self.expect_one_line(done, words)

    def test_a_rank_with_another_secret_does_not_get_in(self):
        def variables_of(rank):
            return {**task(rank), "KVMESH_SECRET": "sesame" if rank == 0 else "barley"}

        task = task_of_slurm(2)
        # Long enough for both to start on a busy machine.
        zero, one = fan_out(2, variables_of, "info", "--timeout", 5)
        self.expect_one_line(zero, "rank 0: ", "for rank 1", "another secret")
        self.expect_one_line(one, "rank 1: ", "for rank 0", "another secret")
        self.assertNotIn("sesame", zero.stderr + one.stderr)

    def test_a_rank_that_does_not_come_to_the_start_of_mpi_is_named(self):
        before = set(pathlib.Path("/dev/shm").glob("kvmesh-*"))
        for what in ("kill -STOP $$", "sleep 30"):
            # mpirun wakes a stopped process before it kills it: then it must not start after all.
            script = f'[ "$OMPI_COMM_WORLD_RANK" = 1 ] && {{ {what}; exit 1; }}; exec "$@"'
            start = time.monotonic()
            done = run_command([*MPIRUN, "-np", "3", "sh", "-c", script, "sh", KVMESH, "info", "--timeout", "2"])
            self.assertLess(time.monotonic() - start, 15)
            self.assertNotEqual(done.returncode, 0)
            for rank in (0, 2):
                self.assertRegex(done.stderr, rf"kvmesh: rank {rank} waited 2000 ms in MPI_Init for rank 1\n")
        left = set(pathlib.Path("/dev/shm").glob("kvmesh-*")) - before
        end = time.monotonic() + 10  # those of other jobs go when they have started
        while any(path.exists() for path in left) and time.monotonic() < end:
            time.sleep(0.05)
        self.assertEqual([path for path in left if path.exists()], [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
