"""Errors, life times, mods and the allocator."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kvmesh
from test_attention import make_cache, on_ranks, tensors


def test_errors_have_classes_and_details():
    def body(mesh):
        cache = make_cache(mesh, pages_per_rank=2)
        with pytest.raises(kvmesh.OutOfPages) as full:
            cache.plan([(cache.create(), 100)])
        assert full.value.asked_pages == 25
        assert full.value.free_pages_per_rank == [2]
        assert full.value.code == 5
        assert cache.pages_needed([(cache.create(), 100), (cache.create(), 1)]) == 26
        assert cache.order_by_owner([(cache.create(), 1), (cache.create(), 1)]) == [0, 1]
        assert cache.try_plan([(cache.create(), 100)]) is None
        with pytest.raises(kvmesh.UnknownSequence):
            cache.erase(12345)
        with pytest.raises(ValueError, match="head_parallel"):
            kvmesh.Mesh(head_parallel=3)
        with pytest.raises(kvmesh.InvalidArgument, match="dtype"):
            make_cache(mesh, dtype="int4")
        with pytest.raises(kvmesh.InvalidArgument, match="all, heads, tokens"):
            cache.plan([], scatter="rows")

    on_ranks(1, body)


def test_each_error_code_of_the_library_has_a_class():
    header = Path(__file__).parents[2] / "include/kvmesh/error.hpp"
    body = header.read_text().partition("enum class ErrorCode")[2].partition("};")[0]
    codes = {int(number): name for name, number in re.findall(r"\bk(\w+) = (\d+),", body)}
    assert len(codes) >= 14
    classes = kvmesh.errors.BY_CODE
    assert {number: classes[number].__name__.removesuffix("Error") for number in classes} == {
        number: name.removesuffix("Error") for number, name in codes.items()}
    for number, each in classes.items():
        assert each.code == number and issubclass(each, kvmesh.Error)
        assert getattr(kvmesh, each.__name__) is each


def test_a_batch_is_ordered_by_owner():
    def body(mesh):
        with make_cache(mesh, placement="balanced", home_threshold_tokens=-2) as cache:
            sequences = [cache.create() for _ in range(4)]
            for sequence in sequences:
                cache.plan([(sequence, 3)])
            batch = [(sequence, 0, 1) for sequence in sequences]
            order = cache.order_by_owner(batch)
            assert order != [0, 1, 2, 3]
            owners = cache.plan([batch[i] for i in order], scatter="owner").token_owners()
            assert owners == [0, 0, 1, 1]
            with pytest.raises(kvmesh.InvalidArgument):
                cache.order_by_owner(batch, group=1)

    on_ranks(2, body)


def test_a_late_rank_is_a_timeout_that_names_it():
    def body(mesh):
        if mesh.rank == 1:
            return
        with pytest.raises(kvmesh.Timeout) as late:
            mesh.barrier()
        assert late.value.late == [1]
        assert isinstance(late.value, TimeoutError)

    on_ranks(2, body, deadline=0.2)


def test_an_error_of_one_rank_comes_out():
    def body(mesh):
        if mesh.rank == 1:
            raise KeyError("mine")
        mesh.barrier()

    with pytest.raises(KeyError, match="mine"):
        kvmesh.run_on_threads(2, body)


def test_wrong_tensors_are_refused_by_name():
    def body(mesh):
        cache = make_cache(mesh)
        step = cache.plan([(cache.create(), 3)])
        q, k, v = tensors(3)
        with pytest.raises(TypeError, match="q: "):
            step.run(0, "words", k, v)
        with pytest.raises(TypeError, match="v: elements"):
            step.run(0, q, k, v.astype(np.int64))
        read_only = np.zeros((3, 4, 6), np.float32)
        read_only.flags.writeable = False
        with pytest.raises(TypeError, match="out: "):
            step.run(0, q, k, v, out=read_only)
        with pytest.raises(kvmesh.InvalidArgument):
            step.run(0, q[:2], k, v)

    on_ranks(1, body)


def test_arguments_of_another_type_are_refused_with_what_is_wanted():
    with kvmesh.Mesh() as mesh, make_cache(mesh) as cache:
        sequence = cache.create()
        for entry in (sequence, "ab", (sequence, 1.5), (sequence,), (sequence, 2**64)):
            for call in (cache.plan, cache.pages_needed, cache.order_by_owner):
                with pytest.raises(TypeError, match="a batch entry is .sequence, append_tokens.*, not "):
                    call([entry])
        with pytest.raises(TypeError, match="a batch entry is .*, not 'a'"):
            cache.plan("ab")
        for limits in ((1,), 5, (1, "x")):
            with pytest.raises(TypeError, match="limits are .sequences, query_tokens. or a dict, not "):
                cache.plan([(sequence, 0)], limits=limits)
        with pytest.raises(TypeError, match="limits: sequences has no such value, not 1.5"):
            cache.plan([(sequence, 0)], limits={"sequences": 1.5})
        with pytest.raises(TypeError, match="a kind of layers is a dict, not 5"):
            cache.plan([(sequence, 0)], kinds=[5])
        assert cache.length(sequence) == 0
        assert cache.plan([(sequence, 1)]).run(0, *tensors(1), lse=False).shape == (1, 4, 6)


@pytest.mark.parametrize("deadline, said", [(float("nan"), "nan"), (float("inf"), "inf"), (1e300, "1e[+]300"),
                                            (-1, "-1.0")])
def test_a_deadline_that_is_none_is_said(deadline, said):
    with pytest.raises(kvmesh.InvalidArgument, match=f"a deadline of {said} seconds"):
        kvmesh.Mesh(deadline=deadline)


def test_closing_ends_an_object():
    mesh = kvmesh.Mesh()
    with make_cache(mesh) as cache:
        step = cache.plan([(cache.create(), 1)])
        mesh.close()  # the cache keeps what it needs
        q, k, v = tensors(1)
        step.run(0, q, k, v)
    assert cache.closed and mesh.closed
    with pytest.raises(kvmesh.InvalidArgument):
        step.run(0, q, k, v)
    with pytest.raises(kvmesh.InvalidArgument, match="closed"):
        cache.create()
    assert "closed" in repr(cache) and "closed" in repr(mesh)


def test_reprs_say_what_there_is():
    with kvmesh.Mesh() as mesh, make_cache(mesh) as cache:
        assert repr(mesh) == ("<kvmesh.Mesh: rank 0 of 1 (loopback), 1 kv x 1 head, in host "
                              "memory>")
        assert "16 of 16 pages of 4 tokens free" in repr(cache)
        assert "3 tokens" in repr(cache.plan([(cache.create(), 3)]))


def test_reprs_of_mods_and_what_they_read():
    assert repr(kvmesh.Buffer([1.5, 2])) == "<kvmesh.Buffer: float32 [2]>"
    assert repr(kvmesh.Buffer(np.zeros((2, 3), bool))) == "<kvmesh.Buffer: bool [2, 3]>"
    said = []

    def mask(b, h, q, kv):
        said.extend(map(repr, (q - kv, kvmesh.to_float(kv), q >= kv)))
        return q >= kv

    kvmesh.MaskMod(mask)
    assert repr(kvmesh.to_int(7)) == "Expr of int32:\n%0 = constant 7 : int32\n"
    assert said == ["Expr of int32:\n%0 = q : int32\n%1 = kv : int32\n%2 = - %0 %1 : int32\n",
                    "Expr of float32:\n%0 = kv : int32\n%1 = to_float %0 : float32\n",
                    "Expr of bool:\n%0 = kv : int32\n%1 = q : int32\n%2 = <= %0 %1 : bool\n"]


def test_reprs_of_an_engine_s_pages():
    with kvmesh.Mesh() as mesh:
        pages = np.zeros((6, 4, 2, 8), np.float32)
        layer = kvmesh.Pool(pages, pages[..., :6].copy(), order="nhd")
        assert repr(layer) == ("<kvmesh.Pool: k float32 [6, 2, 4, 8], v float32 [6, 2, 4, 6], in host "
                               "memory>")
        assert repr(kvmesh.Pool(pages, v_dim=6)) == ("<kvmesh.Pool: k float32 [6, 4, 2, 8], latent, values "
                                                     "of 6, in host memory>")
        with kvmesh.ExternalPool(mesh, layer, q_heads=4) as pool:
            assert repr(pool) == "<kvmesh.ExternalPool: 4 query heads, values of 6, in host memory>"
            with pool.plan([0, 2], [3], [[0]], appended=[1]) as step:
                assert repr(step) == "<kvmesh.ExternalPlan: appends 1 tokens, 2 queries>"
        assert repr(step) == "<kvmesh.ExternalPlan: closed>"
        assert repr(pool) == "<kvmesh.ExternalPool: closed>"


def test_reprs_of_prefixes():
    with kvmesh.Mesh() as mesh, make_cache(mesh, prefix_cache=True) as cache:
        key = cache.make_prefix_key()
        key.append([1, 2, 3, 4, 5])
        assert repr(key) == "<kvmesh.PrefixKey: 5 tokens, 1 full pages>"
        assert repr(cache.match_prefix(key)) == "<kvmesh.PrefixMatch: 0 tokens, 0 on their way>"


def test_a_combiner_can_be_closed():
    def body(mesh):
        o, lse = np.ones((1, 1, 2), np.float32), np.zeros((1, 1), np.float32)
        with kvmesh.Combiner(mesh) as combiner:
            assert repr(combiner) == "<kvmesh.Combiner: of 2 kv ranks, in host memory>"
            np.testing.assert_allclose(combiner(o, lse), o)
        assert combiner.closed and repr(combiner) == "<kvmesh.Combiner: closed>"
        with pytest.raises(kvmesh.InvalidArgument, match="closed"):
            combiner(o, lse)

    on_ranks(2, body)


def test_mods_compute_what_python_computes():
    mask = kvmesh.MaskMod(lambda b, h, q, kv: ((q - 7) // 3 == kv % -4) | (abs(q - kv) > 5) & ~(h == 1))
    for h in range(2):
        for q in range(12):
            for kv in range(12):
                expected = ((q - 7) // 3 == kv % -4) or (abs(q - kv) > 5 and h != 1)
                assert mask.evaluate(0, h, q, kv) == expected
    score = kvmesh.ScoreMod(lambda s, b, h, q, kv: kvmesh.where(q > kv, s / 2 - 1, kvmesh.maximum(s, 0)))
    assert score.evaluate(3.0, 0, 0, 5, 1) == 0.5
    assert score.evaluate(-3.0, 0, 0, 1, 5) == 0.0
    both = kvmesh.causal() & ~kvmesh.sliding_window(2)
    assert [both.evaluate(0, 0, 5, kv) for kv in range(7)] == [True] * 4 + [False] * 3
    nested = kvmesh.MaskMod(lambda b, h, q, kv: both(b, h, q, kv + 1))
    assert nested.evaluate(0, 0, 5, 2) and not nested.evaluate(0, 0, 5, 3)


def test_mods_are_text_and_back():
    mask = kvmesh.sliding_window(9)
    assert kvmesh.MaskMod.from_text(mask.text).text == mask.text
    with pytest.raises(kvmesh.InvalidArgument, match="line 1"):
        kvmesh.MaskMod.from_text("nonsense")


def test_mods_refuse_what_cannot_be_traced():
    with pytest.raises(TypeError, match="traced"):
        kvmesh.MaskMod(lambda b, h, q, kv: q >= kv and kv > 1)
    with pytest.raises(kvmesh.InvalidArgument, match="bool"):
        kvmesh.MaskMod(lambda b, h, q, kv: q - kv)
    with pytest.raises(kvmesh.InvalidArgument, match="int32"):
        kvmesh.MaskMod(lambda b, h, q, kv: q < 2**40)
    with pytest.raises(TypeError):
        kvmesh.MaskMod(lambda b, h, q, kv: q < "5")


def test_buffers_of_one_and_two_dimensions():
    table = kvmesh.Buffer(np.arange(6).reshape(2, 3))
    flags = kvmesh.Buffer([True, False])
    mask = kvmesh.MaskMod(lambda b, h, q, kv: (table[h, kv] > 2) & flags[q])
    assert [mask.evaluate(0, h, 0, kv) for h in (0, 1) for kv in range(3)] == [False] * 3 + [True] * 3
    assert not mask.evaluate(0, 1, 1, 0)
    flags.set([False, False])
    assert not mask.evaluate(0, 1, 0, 0)
    with pytest.raises(kvmesh.InvalidArgument):
        flags.set([1, 2])
    with pytest.raises(TypeError, match="two indices"):
        kvmesh.MaskMod(lambda b, h, q, kv: table[h] > 2)
    with pytest.raises(OverflowError):
        kvmesh.Buffer([2**40])


def test_buffers_keep_their_shape():
    row, table = kvmesh.Buffer([1.0, 2.0, 3.0]), kvmesh.Buffer(np.arange(6).reshape(2, 3))
    for buffer, other in [(row, [9.0]), (row, [1.0] * 4), (row, [1, 2, 3]), (row, [[1.0, 2.0, 3.0]])]:
        with pytest.raises(kvmesh.InvalidArgument, match="keeps its type and its shape"):
            buffer.set(other)
    with pytest.raises(kvmesh.InvalidArgument, match=r"int32 \[2, 3\].*int32 \[2, 5\]"):
        table.set(np.arange(10).reshape(2, 5))
    row.set([4.0, 5.0, 6.0])
    mod = kvmesh.ScoreMod(lambda score, b, h, q, kv: row[kv])
    assert [mod.evaluate(0.0, 0, 0, 0, kv) for kv in range(3)] == [4.0, 5.0, 6.0]


def test_a_mod_loops_over_a_buffer():
    starts = kvmesh.Buffer([2, 5])
    assert len(starts) == 2 and len(kvmesh.Buffer(np.zeros((3, 2)))) == 3

    def ends_a_part(b, h, q, kv):
        found = kv < 0
        for start in starts:
            found = found | (kv + 1 == start)
        return found

    mask = kvmesh.MaskMod(ends_a_part)
    assert [kv for kv in range(8) if mask.evaluate(0, 0, 0, kv)] == [1, 4]
    starts.set([3, 7])
    assert [kv for kv in range(8) if mask.evaluate(0, 0, 0, kv)] == [2, 6]
    with pytest.raises(TypeError, match="two dimensions"):
        list(kvmesh.Buffer(np.zeros((3, 2))))


def test_mods_refuse_numbers_of_more_than_32_bits():
    for number in (2**40, 2**70):
        with pytest.raises(kvmesh.InvalidArgument, match="32"):
            kvmesh.MaskMod(lambda b, h, q, kv, number=number: kv < number)



def test_the_allocator_alone():
    allocator = kvmesh.PageAllocator(ranks=2, pages_per_rank=4, page_size=2, placement="striped")
    sequence = allocator.create()
    assert allocator.append(sequence, 3) == []
    assert [rank for rank, _ in allocator.pages(sequence)] == [0, 1]
    fork = allocator.fork(sequence)
    (copy,) = allocator.append(fork, 1)  # the shared, half full page
    assert copy == [allocator.pages(sequence)[1], allocator.pages(fork)[1]]
    assert allocator.free_pages() == 5 and allocator.sequences == 2
    assert "2 sequences, 5 of 8 pages of 2 tokens free on 2 ranks" in repr(allocator)


def test_block_masks_show_their_tiles():
    mask = kvmesh.make_block_mask(kvmesh.causal(), q_len=8, kv_len=8, q_block=4, kv_block=4)
    assert mask.row(0, 0, 1) == ([1], [0])
    assert mask.sparsity == 0.25
    assert "#" in repr(mask)


def test_a_rendezvous_is_a_host_and_a_port():
    for wrong in ("host", ":5", "host:", "host:port", "host:65536", "host:-1"):
        with pytest.raises(kvmesh.InvalidArgument, match=f"host:port\", not '{wrong}'"):
            kvmesh.Mesh(rank=0, size=2, rendezvous=wrong)
    with pytest.raises(kvmesh.InvalidArgument, match="rank and size"):
        kvmesh.Mesh(rendezvous="127.0.0.1:1")


@pytest.mark.parametrize("given", [{"rank": 0}, {"size": 2}, {"rank": 0, "size": 2}, {"secret": "x"},
                                   {"comm": 5, "rank": 0}, {"group": 5, "secret": "x"}])
def test_rank_size_and_secret_are_refused_without_a_rendezvous(given):
    with pytest.raises(kvmesh.InvalidArgument, match="for a rendezvous, which is not given"):
        kvmesh.Mesh(**given)


@pytest.mark.parametrize("given", [{"comm": 5, "group": 5}, {"group": 5, "rendezvous": "127.0.0.1:1"},
                                   {"comm": 5, "rank": 0, "size": 1, "rendezvous": "127.0.0.1:1"}])
def test_a_mesh_takes_one_source_of_ranks(given):
    with pytest.raises(kvmesh.InvalidArgument, match="one of comm, group and rendezvous"):
        kvmesh.Mesh(**given)


def test_ranks_meet_over_tcp():
    program = ("import kvmesh, sys\n"
               "with kvmesh.Mesh(rank=int(sys.argv[1]), size=2, rendezvous=sys.argv[2]) as mesh:\n"
               "    mesh.barrier()\n"
               "    print(mesh.communicator, mesh.kv_rank, mesh.size)\n")
    port = 20000 + os.getpid() % 12000  # below those that the system hands out
    ranks = [subprocess.Popen([sys.executable, "-c", program, str(rank), f"127.0.0.1:{port}"],
                              stdout=subprocess.PIPE, text=True) for rank in range(2)]
    assert [rank.communicate(timeout=60)[0].split() for rank in ranks] == [
        ["tcp", "0", "2"], ["tcp", "1", "2"]]


def test_a_torch_process_group_becomes_a_mesh(tmp_path):
    pytest.importorskip("torch")
    program = ("import kvmesh, sys\n"
               "from torch import distributed\n"
               "distributed.init_process_group('gloo', rank=int(sys.argv[1]), world_size=2,\n"
               "                               init_method='file://' + sys.argv[2])\n"
               "with kvmesh.Mesh(group=distributed.group.WORLD) as mesh:\n"
               "    mesh.barrier()\n"
               "    print(mesh.communicator, mesh.kv_rank, mesh.size)\n")
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1"}
    ranks = [subprocess.Popen([sys.executable, "-c", program, str(rank), str(tmp_path / "store")],
                              stdout=subprocess.PIPE, text=True, env=environment)
             for rank in range(2)]
    assert [rank.communicate(timeout=120)[0].split() for rank in ranks] == [
        ["tcp", "0", "2"], ["tcp", "1", "2"]]


def test_the_version_is_the_library_s():
    assert kvmesh.__version__.count(".") == 2
