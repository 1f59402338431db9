"""Page formats, ways of the combine, and the prefix cache."""

import hashlib
import re

import numpy as np
import pytest

import kvmesh
from test_attention import (HEADS, KV_HEADS, K_DIM, make_cache, on_ranks, reference, tensors)


def test_latent_pages_hold_keys_alone():
    random = np.random.default_rng(1)
    q, k = (random.standard_normal((13, heads, 12)).astype(np.float32) for heads in (HEADS, 1))
    expected, _ = reference(q, k, k[..., :8])

    def body(mesh):
        cache = make_cache(mesh, kv_heads=1, k_dim=12, v_dim=8, page_kind="latent")
        sequence = cache.create()
        out = cache.plan([(sequence, 9)]).run(0, q[:9], k[:9])
        np.testing.assert_allclose(out, expected[:9], atol=1e-5)
        step = cache.plan([(sequence, 4)])
        step.append(0, k[9:])
        np.testing.assert_allclose(step.combine(*step.attend_partial(0, q[9:])), expected[9:],
                                   atol=1e-5)
        with pytest.raises(kvmesh.InvalidArgument, match="latent"):
            cache.plan([(sequence, 1)]).run(0, q[:1], k[:1], k[:1])

    on_ranks(2, body)


@pytest.mark.parametrize("scales", [{}, dict(scale_kind="per tensor", k_scale=0.02, v_scale=0.02),
                                    dict(scale_kind="per head", k_scale=[0.02] * KV_HEADS,
                                         v_scale=[0.02, 0.01])])
def test_float8_pages_round_to_three_bits(scales):
    q, k, v = tensors(15)
    expected, _ = reference(q, k, v)

    def body(mesh):
        cache = make_cache(mesh, dtype="float8_e4m3", **scales)
        assert cache.pool_bytes < make_cache(mesh).pool_bytes
        out = cache.plan([(cache.create(), 15)]).run(0, q, k, v)
        error = np.abs(out - expected).max()
        assert 1e-4 < error < 0.2

    on_ranks(1, body)


def test_each_head_has_its_scales_in_each_group():
    """Values of 100 saturate at 448 times the scale: 28 with 1/16."""
    q, k, v = (np.full((1, heads, 8), 100, np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS))
    heads = dict(scale_kind="per head", k_scale=[1, 1], v_scale=np.array([1 / 16, 1], np.float32))

    def body(mesh):
        cache = make_cache(mesh, layers=2, v_dim=8, dtype="float8_e4m3", **heads,
                           groups=[dict(layers=[1], **{**heads, "v_scale": [1, 1 / 16]})])
        step = cache.plan([(cache.create(), 1)])
        for layer in range(2):
            out = step.run(layer, q, k, v)
            for head in range(HEADS):
                saturates = head // (HEADS // KV_HEADS) == layer
                np.testing.assert_allclose(out[:, head], 28 if saturates else 96)  # 100, to 4 bits
        with pytest.raises(kvmesh.InvalidArgument, match="k_heads has 3 scales"):
            make_cache(mesh, dtype="float8_e4m3", scale_kind="per head", k_scale=[1, 2, 3])
        with pytest.raises(kvmesh.InvalidArgument, match="the scale -1"):
            make_cache(mesh, scale_kind="per head", k_scale=[1, -1], v_scale=[1, 1])
        with pytest.raises(TypeError, match="needs a scale_kind"):
            make_cache(mesh, layers=2, groups=[dict(layers=[1], k_scale=2.0)])

    on_ranks(1, body)


def test_options_are_named():
    with kvmesh.Mesh() as mesh:
        for wrong in (dict(page_kind="flat"), dict(scale_kind="none"), dict(eviction="oldest"),
                      dict(prefix_hash="md5")):
            with pytest.raises(kvmesh.InvalidArgument, match=list(wrong.values())[0]):
                make_cache(mesh, **wrong)
        cache = make_cache(mesh)
        sequence = cache.create()
        with pytest.raises(kvmesh.InvalidArgument, match="way"):
            cache.plan([(sequence, 1)], way="carrier pigeon")
        with pytest.raises(kvmesh.InvalidArgument):
            cache.plan([(sequence, 1)], way="nccl")  # not on the CPU
        q, k, v = tensors(1)
        out = cache.plan([(sequence, 1)], way="host", travels_as="bfloat16").run(0, q, k, v)
        np.testing.assert_allclose(out, np.repeat(v, HEADS // KV_HEADS, 1), atol=1e-5)


def test_requests_share_the_pages_of_a_prefix():
    q, k, v = tensors(19)
    expected, _ = reference(q, k, v)
    prompt = list(range(100, 119))

    def body(mesh):
        cache = make_cache(mesh, prefix_cache=True, eviction="lru")
        key = cache.make_prefix_key()
        key.append(prompt)
        assert len(key) == 19 and len(key.hashes) == 4 and len(key.hashes[0]) == 32
        first = cache.create_with_prefix(key)
        assert cache.length(first) == 0
        cache.plan([(first, 19)]).run(0, q, k, v)
        cache.publish(first, key, [(0, 8, 90)])
        cache.erase(first)

        match = cache.match_prefix(key)
        assert match.tokens == 16
        again = cache.create_with_prefix(match)
        out = cache.plan([(again, 3)]).run(0, q[16:], k[16:], v[16:])
        np.testing.assert_allclose(out, expected[16:], atol=1e-5)

        other = cache.make_prefix_key(salt="another tenant")
        other.append(prompt)
        assert other.hashes[0] != key.hashes[0]
        missed = cache.match_prefix(other)
        assert missed.tokens == 0
        cache.release(missed)
        key.truncate(7)
        assert cache.length(cache.create_with_prefix(key)) in (4, 7)
        adapted = cache.make_prefix_key(adapter=("lora", "path"), items=[("image", 0, 4)])
        adapted.append(prompt)
        assert adapted.hashes[0] != key.hashes[0]
        cache.check_replicas()

    on_ranks(2, body)


def test_embeddings_are_the_last_of_the_extra_keys():
    def text(value):
        assert len(value) < 24
        return bytes([0x60 + len(value)]) + value.encode()

    def embeds_key(page):
        return b"\x82" + text("prompt_embeds") + b"\x58\x20" + embeds[page]

    # Canonical CBOR by hand: [parent, tokens below 24, extra keys or null].
    def page_hash(parent, tokens, extras):
        return hashlib.sha256(b"\x83\x58\x20" + parent + bytes([0x80 + len(tokens), *tokens]) + extras).digest()

    prompt = list(range(12))
    embeds = [hashlib.sha256(page).digest() for page in (b"first page", b"second page")]
    root = hashlib.sha256(text("vllm-none-hash")).digest()
    salt = b"\x82" + text("cache_salt") + text("tenant")
    first = page_hash(root, prompt[:4], b"\x82" + salt + embeds_key(0))
    second = page_hash(first, prompt[4:8], b"\x81" + embeds_key(1))
    third = page_hash(second, prompt[8:], b"\xf6")

    def body(mesh):
        cache = make_cache(mesh, prefix_cache=True)
        key = cache.make_prefix_key(salt="tenant", prompt_embeds=embeds)
        key.append(prompt)
        assert key.hashes == [first, second, third]
        with pytest.raises(kvmesh.InvalidArgument):
            cache.make_prefix_key(prompt_embeds=[b"short"])

    on_ranks(1, body)


def test_evicted_pages_come_back_from_tiers(tmp_path):
    q, k, v = tensors(17)
    expected, _ = reference(q, k, v)
    prompt = list(range(50, 66))

    def body(mesh, pages, tiers):
        cache = make_cache(mesh, pages_per_rank=pages, prefix_cache=True, tiers=tiers)
        key = cache.make_prefix_key()
        key.append(prompt)
        sequence = cache.create_with_prefix(key)
        found = cache.length(sequence)
        out = cache.plan([(sequence, 17 - found)]).run(0, q[found:], k[found:], v[found:])
        np.testing.assert_allclose(out, expected[found:], atol=1e-5)
        cache.publish(sequence, key, [(0, 4, 50, 1000), (4, 4, 20)])
        cache.erase(sequence)
        with pytest.raises(TypeError):
            cache.publish(sequence, key, [(0, 4)])
        for priority in (-1, 200, 2**40):
            with pytest.raises(kvmesh.InvalidArgument, match=f"priority is 0 to 100, not {priority}$"):
                cache.publish(sequence, key, [(0, 4, priority)])
        large = cache.create()
        cache.reserve(large, 4 * cache.free_pages(), after=0)  # evicts all
        cache.erase(large)
        cache.flush_tiers()
        mesh.barrier()  # the other's files are there, too
        while (match := cache.match_prefix_now(key, after=0)).loading > 0:
            assert match.tokens + match.loading == 16
            cache.release(match)
        assert match.tokens == 16
        cache.release(match)
        match = cache.match_prefix(key, after=0)  # the stream of later steps
        assert match.tokens == 16 and match.loading == 0
        assert cache.length(cache.create_with_prefix(key, after=0)) == 16
        return found, cache.tier_statistics()

    def host(mesh):
        found, statistics = body(mesh, 8, {"host_bytes": 1 << 20})
        assert found == 0 and statistics["pages_back"] == 4 and statistics["faults"]["io"] == 0

    def files(mesh):
        found, statistics = body(mesh, 8, {"directory": str(tmp_path), "model": "m", "file_bytes": 1 << 20})
        assert found in (0, 16) and statistics["file"]["stores"] + statistics["file"]["loads"] > 0
        return found

    on_ranks(2, host)
    on_ranks(2, files)
    on_ranks(1, lambda mesh: files(mesh) == 16 or pytest.fail("the files of 2 ranks are not found"))
    with pytest.raises(TypeError):
        make_cache(kvmesh.Mesh(), tiers={"bytes": 1})


def test_a_cache_with_tiers_ends_after_its_ranks_if_an_error_keeps_it():
    def body(mesh):
        cache = make_cache(mesh, prefix_cache=True, tiers={"host_bytes": 1 << 20})
        raise ValueError(repr(cache))  # its traceback has the cache

    with pytest.raises(ValueError, match="KvCache"):
        on_ranks(2, body)


def test_pages_move_between_ranks_while_decoding_goes_on():
    q, k, v = tensors(19)
    expected, _ = reference(q, k, v)

    def body(mesh):
        cache = make_cache(mesh, placement="packed", max_pages_per_rank=40)
        sequence = cache.create()
        cache.plan([(sequence, 17)]).run(0, q[:17], k[:17], v[:17])
        assert cache.rebalance(1) == 1 and cache.rebalance(100) > 0
        assert {rank for rank, _ in cache.pages(sequence)} == {0, 1}
        out = cache.plan([(sequence, 1)]).run(0, q[17:18], k[17:18], v[17:18])
        np.testing.assert_allclose(out, expected[17:18], atol=1e-5)
        assert cache.drain(0) > 0 and cache.pool_pages(0) == 0
        assert {rank for rank, _ in cache.pages(sequence)} == {1}
        out = cache.plan([(sequence, 1)]).run(0, q[18:], k[18:], v[18:])
        np.testing.assert_allclose(out, expected[18:], atol=1e-5)
        cache.add_rank(0)
        assert cache.resize(1, 40) == 0 and cache.pool_pages(1) == 40
        with pytest.raises(kvmesh.InvalidArgument):
            cache.resize(1, 41)
        cache.check_replicas()

    on_ranks(2, body)


def test_a_picture_has_the_pages_of_each_rank_s_pool():
    def body(mesh):
        cache = make_cache(mesh, pages_per_rank=2, max_pages_per_rank=8)
        cache.resize(1, 6)
        sequence = cache.create()
        cache.plan([(sequence, 8 * 4)])
        svg = kvmesh.draw_pages(cache, {"all": sequence}).svg
        assert svg.count('stroke="#cccccc"') == 2 + 6  # a square per page
        assert sorted(map(int, re.findall(r">(\d+)</text>", svg))) == list(range(8))
        cache.erase(sequence)
        cache.drain(0)
        assert kvmesh.draw_pages(cache, {}).svg.count('stroke="#cccccc"') == 6

    on_ranks(2, body)


def test_pages_move_beside_steps():
    q, k, v = tensors(60)
    expected, _ = reference(q, k, v)

    def body(mesh):
        cache = make_cache(mesh, placement="packed")
        sequence = cache.create()
        moved = moving = 0
        for at in range(0, 60, 3):
            now, moving = cache.rebalance_now(2, leaving=0 if at > 30 else None, after=0)
            moved += now
            step = slice(at, at + 3)
            out = cache.plan([(sequence, 3)]).run(0, q[step], k[step], v[step])
            np.testing.assert_allclose(out, expected[step], atol=1e-5)
        while moving > 0:
            now, moving = cache.rebalance_now()
            moved += now
        assert moved > 0
        with pytest.raises(kvmesh.InvalidArgument):
            cache.rebalance_now(-1)
        with pytest.raises(kvmesh.InvalidArgument):
            cache.rebalance_now(leaving=2)
        cache.check_replicas()

    on_ranks(2, body)


def test_groups_of_layers_have_shapes_and_windows_of_their_own():
    tokens, window = 21, 6
    rng = np.random.default_rng(3)

    def make(heads, dim):
        return rng.standard_normal((tokens, heads, dim)).astype(np.float32)

    inputs = [(make(4, 8), make(2, 8), make(2, 8)), (make(4, 16), make(1, 16), make(1, 16)),
              (make(4, 8), make(2, 8), make(2, 8))]

    def expected(layer, sees):
        q, k, v = (each.astype(np.float64) for each in inputs[layer])
        group = q.shape[1] // k.shape[1]
        k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[2])
        at = np.arange(tokens)
        distance = at[:, None] - at[None, :]
        scores = np.where((distance >= 0) & (distance < sees), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v)

    def body(mesh):
        cache = kvmesh.KvCache(
            mesh, layers=3, q_heads=4, kv_heads=2, k_dim=8, page_size=4, pages_per_rank=16,
            dtype="float32",
            groups=[{"layers": [1], "kv_heads": 1, "k_dim": 16, "window": window,
                     "page_share": 0.5}])
        kinds = [{"layers": [2], "mask": lambda b, h, q, kv: (q >= kv) & (q - kv < 3)}]
        sequence = cache.create()
        for first, last in ((0, 16), (16, 18), (18, 19), (19, 21)):
            step = cache.plan([(sequence, last - first)], kinds=kinds)
            for layer, sees in enumerate((tokens, window, 3)):
                out = step.run(layer, *(each[first:last] for each in inputs[layer]))
                np.testing.assert_allclose(out, expected(layer, sees)[first:last], atol=1e-5)
        assert None not in cache.pages(sequence)
        assert cache.pages(sequence, group=1)[:3] == [None] * 3
        assert cache.pages(sequence, group=1)[3] is not None
        assert cache.free_pages(group=1) == 8 * mesh.kv_parallel - 3
        with pytest.raises(TypeError, match="windows"):
            kvmesh.KvCache(mesh, q_heads=1, kv_heads=1, k_dim=8, pages_per_rank=1,
                           groups=[{"layers": [0], "windows": 2}])

    on_ranks(2, body)


def test_states_lie_on_one_rank_and_are_written_in_place():
    def body(mesh):
        cache = kvmesh.KvCache(mesh, layers=2, q_heads=1, kv_heads=1, k_dim=8, pages_per_rank=4, dtype="float32",
                               groups=[{"layers": [1], "state_bytes": 64}])
        sequence = cache.create()
        assert cache.sequence_state(1, sequence) is None
        cache.plan([(sequence, 3)])
        ((rank, _),) = cache.pages(sequence, group=1)
        state = cache.sequence_state(1, sequence)
        assert (state is not None) == (rank == mesh.kv_rank)
        if state is not None:
            state = np.from_dlpack(state)
            assert state.shape == (16,) and state.dtype == np.float32
            state[:] = 7
        fork = cache.fork(sequence)
        cache.plan([(fork, 1)])
        copy = cache.sequence_state(1, fork)
        if copy is not None:
            copy = np.from_dlpack(copy)
            assert (copy == 7).all()
            copy[:] = 8
        if state is not None:
            assert (state == 7).all()
        with pytest.raises(kvmesh.InvalidArgument):
            cache.sequence_state(0, sequence)

    on_ranks(2, body)


def test_pages_with_which_several_sequences_begin_are_read_once():
    q, k, v = tensors(41)
    expected, _ = reference(q, k, v)

    def body(mesh):
        cache = make_cache(mesh)
        parent = cache.create()
        cache.plan([(parent, 41)]).run(0, q, k, v)
        batch = [(parent, 0, 1)] + [(cache.fork(parent), 0, 1) for _ in range(3)]
        visited = []
        for how in (dict(shares_prefixes=False), dict(least_saved_tokens=1), dict(least_saved_tokens=10**6),
                    dict(least_saved_tokens=1, limits={"sequences": 4, "shares_prefixes": True}), {},
                    dict(least_saved_tokens=1, fixed_split_tokens=128)):
            step = cache.plan(batch, **how)
            visited.append(step.visited_tiles)
            room = (np.repeat(each[:1], 4, 0) for each in ((k, v) if "limits" in how else ()))  # is not read
            out = step.run(0, np.repeat(q[40:], 4, 0), *room)
            np.testing.assert_allclose(out, np.repeat(expected[40:], 4, 0), atol=1e-5)
        alone, shared, unpaid, limited, usual, fixed = visited
        assert shared < alone / 2 and limited == shared and unpaid == usual == fixed == alone
        with pytest.raises(kvmesh.InvalidArgument, match="fixed_split_tokens is 100"):
            cache.plan(batch, fixed_split_tokens=100)
        with pytest.raises(TypeError, match="colour"):
            cache.plan(batch, limits={"sequences": 4, "colour": 1})

    on_ranks(1, body)
