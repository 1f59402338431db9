"""Page formats, ways of the combine, and the prefix cache."""

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


@pytest.mark.parametrize("scales", [{}, dict(scale_kind="per tensor", k_scale=0.02, v_scale=0.02)])
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
