"""One thread at a time on a mesh, and none in a child of fork()."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import kvmesh
from test_attention import HEADS, make_cache, on_ranks, tensors


def beside_a_barrier(mesh, call):
    """Returns call() of another thread, during which the mesh's own thread waits in a barrier."""
    results = []

    def other():
        while not is_busy(mesh):
            time.sleep(0.001)
        results.append(call())

    thread = threading.Thread(target=other)
    thread.start()
    mesh.barrier()
    thread.join()
    return results[0]


def is_busy(mesh):
    try:
        mesh.sent_bytes
        return False
    except kvmesh.InvalidArgument:
        return True


def test_a_second_thread_is_refused():
    done = threading.Event()

    def body(mesh):
        cache = make_cache(mesh)
        step = cache.plan([(cache.create(), 0)])
        if mesh.rank == 1:
            done.wait(10)
            mesh.barrier()
            return

        def second():
            try:
                for call in (cache.create, mesh.barrier, lambda: cache.plan([]), lambda: make_cache(mesh),
                             lambda: step.run(0, *tensors(0)), lambda: kvmesh.Combiner(mesh)):
                    with pytest.raises(kvmesh.InvalidArgument, match="another thread"):
                        call()
                return mesh.rank, cache.kv_parallel  # these never change
            finally:
                done.set()

        assert beside_a_barrier(mesh, second) == (0, 2)
        assert cache.length(cache.create()) == 0

    on_ranks(2, body, deadline=20)


def test_close_waits_for_the_thread_inside_and_collected_objects_end_after_it():
    closing, done = threading.Event(), []

    def body(mesh):
        caches = [make_cache(mesh), make_cache(mesh)]
        if mesh.rank == 1:
            closing.wait(10)
            time.sleep(0.05)  # the other rank's close has begun
            assert not done
            mesh.barrier()
            return

        def second():
            caches.pop()  # is collected
            closing.set()
            caches[0].close()
            done.append(caches[0].closed)

        beside_a_barrier(mesh, second)
        assert done == [True]
        with pytest.raises(kvmesh.InvalidArgument, match="closed"):
            caches[0].create()

    on_ranks(2, body, deadline=20)


def test_closing_a_cache_while_a_thread_runs_its_plan():
    with kvmesh.Mesh(threads=1) as mesh:
        cache = make_cache(mesh, pages_per_rank=512)
        step = cache.plan([(cache.create(), 2000)])
        outs = []
        thread = threading.Thread(target=lambda: outs.append(step.run(0, *tensors(2000))))
        thread.start()
        while not is_busy(mesh) and thread.is_alive():
            time.sleep(0.001)
        cache.close()
        thread.join()
        assert outs[0].shape == (2000, HEADS, 6) and np.isfinite(outs[0]).all()


def runs_beside(call):
    """Returns whether another thread of Python ran in the middle of call()."""
    ticks, is_done = [], threading.Event()

    def tick():
        while not is_done.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.perf_counter()
    call()
    end = time.perf_counter()
    is_done.set()
    thread.join()
    quarter = (end - begin) / 4  # at its ends Python's lock is free
    return any(begin + quarter < each < end - quarter for each in ticks)


def test_other_threads_run_while_a_block_mask_is_made():
    assert runs_beside(lambda: kvmesh.make_block_mask(kvmesh.causal(), q_len=1 << 17, kv_len=1 << 17))
    tiles = np.ones((1, 1, 4096, 4096), np.uint8)  # as kvmesh.torch.PagedAttention has them
    assert runs_beside(lambda: kvmesh._kvmesh.block_mask_of(tiles, q_len=4096, kv_len=4096, q_block=1,
                                                            kv_block=1, mask=kvmesh.no_mask()))


def test_other_threads_run_while_a_key_is_hashed():
    with kvmesh.Mesh() as mesh, make_cache(mesh, prefix_cache=True) as cache:
        key, tokens = cache.make_prefix_key(), [1] * (1 << 21)
        assert runs_beside(lambda: key.append(tokens))
        assert len(key) == len(tokens)


def test_other_threads_run_while_objects_end():
    closables = pytest.importorskip("closables", reason="a module of kvmesh's own build")
    owner = closables.Owner()
    objects = [closables.Slow(owner, 0.2) for _ in range(3)]
    assert runs_beside(objects.pop)  # is collected
    assert runs_beside(objects.pop().close)
    before = closables.ended()

    def leave():
        """Leaves a call, after which an object that was collected meanwhile ends."""
        worker = objects[0]
        thread = threading.Timer(0.01, lambda: objects.append(closables.Slow(owner, 0.2)) or objects.pop())
        thread.start()
        worker.work(0.03)
        thread.join()

    assert runs_beside(leave) and closables.ended() == before + 1


def test_calls_wait_while_another_thread_s_object_ends():
    closables = pytest.importorskip("closables", reason="a module of kvmesh's own build")
    owner = closables.Owner()
    objects, before = [closables.Slow(owner, 0.2), closables.Slow(owner, 0)], closables.ended()
    for call in (lambda it: it.look(), lambda it: it.work(0), lambda it: it.close()):
        collector = threading.Thread(target=lambda: objects.pop(0))
        collector.start()
        while closables.begun() == before:
            time.sleep(0.001)
        call(objects[0])  # neither refused nor beside the other's end
        assert closables.ended() == before + 1 + objects[0].closed
        collector.join()
        objects.insert(0, closables.Slow(owner, 0.2))
        before = closables.ended()


FORKS = """
import os, signal, sys
import numpy as np
import kvmesh

q, k = np.ones((40, 2, 8), np.float32), np.ones((40, 1, 8), np.float32)


def step_on(mesh):
    cache = kvmesh.KvCache(mesh, q_heads=2, kv_heads=1, k_dim=8, pages_per_rank=8)
    return cache, cache.plan([(cache.create(), 40)])


mesh = kvmesh.Mesh(threads=2)
cache, step = step_on(mesh)
step.run(0, q, k, k)
child = os.fork()
if child == 0:
    signal.alarm(30)  # ends a child that hangs
    for call in (lambda: step.run(0, q, k, k), cache.create, mesh.barrier, lambda: step_on(mesh)):
        try:
            call()
            os._exit(3)
        except kvmesh.InvalidArgument as error:
            assert "fork" in str(error), error
    cache.close()
    own_cache, own_step = step_on(kvmesh.Mesh(threads=2))
    own_step.run(0, q, k, k)
    sys.exit(0)  # frees what the parent made, too
status = os.waitpid(child, 0)[1]
step.run(0, q, k, k)
print("child", status)
"""


def test_a_forked_child_is_refused_and_ends():
    child = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60)
    assert child.stdout == "child 0\n", child.stdout + child.stderr


def test_what_a_daemon_thread_holds_is_no_leak():
    program = ("import kvmesh, threading, time\n"
               "mesh = kvmesh.Mesh(threads=1)\n"
               "threading.Thread(target=lambda held: time.sleep(60), args=[mesh], daemon=True).start()")
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (child.returncode, child.stderr) == (0, "")


DAEMON = """
import sys, threading, time
import numpy as np
import kvmesh

q, k = np.ones((3, 2, 8), np.float32), np.ones((3, 1, 8), np.float32)
mesh = kvmesh.Mesh(threads=1)


def make_cache():
    return kvmesh.KvCache(mesh, q_heads=2, kv_heads=1, k_dim=8, pages_per_rank=8)


cache = make_cache()
step = cache.plan([(cache.create(), 3)])


def loop():
    while True:
        {call}


sys.setswitchinterval(1e-5)  # the thread loses Python's lock in the middle of many calls
threading.Thread(target=loop, daemon=True).start()
time.sleep(0.2)
"""


@pytest.mark.parametrize("call", ["step.run(0, q, k, k)", "make_cache()", "make_cache().close()",
                                  "kvmesh.run_on_threads(2, lambda mesh: time.sleep(0.001))",
                                  "kvmesh.MaskMod(lambda b, h, q, kv: max(range(50), key=lambda i: i) > q)"])
def test_a_daemon_thread_in_a_call_lets_the_program_end(call):
    program = DAEMON.replace("{call}", call)
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (child.returncode, child.stderr) == (0, "")
