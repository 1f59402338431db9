"""The cache and its steps, against attention in float64 by numpy, on ranks that are threads."""

import threading

import numpy as np
import pytest

import kvmesh

HEADS, KV_HEADS, K_DIM, V_DIM = 4, 2, 8, 6


def reference(q, k, v, mask=lambda q, kv: q >= kv, score=lambda s, h, q, kv: s):
    """(o, lse) of queries at the newest positions; a row without a key has o = 0, lse = -inf."""
    queries, keys = len(q), len(k)
    group = q.shape[1] // k.shape[1]
    o = np.zeros((queries, q.shape[1], v.shape[2]))
    lse = np.full((queries, q.shape[1]), -np.inf)
    for i in range(queries):
        at = keys - queries + i
        for h in range(q.shape[1]):
            seen = [j for j in range(keys) if mask(at, j)]
            if not seen:
                continue
            scores = np.array([score(q[i, h].astype(float) @ k[j, h // group] / np.sqrt(q.shape[2]),
                                     h, at, j) for j in seen])
            weights = np.exp(scores - scores.max())
            lse[i, h] = scores.max() + np.log(weights.sum())
            o[i, h] = (weights / weights.sum()) @ v[seen, h // group]
    return o, lse


def tensors(tokens, seed=0, dtype=np.float32):
    random = np.random.default_rng(seed)
    return [random.standard_normal((tokens, heads, dim)).astype(dtype)
            for heads, dim in ((HEADS, K_DIM), (KV_HEADS, K_DIM), (KV_HEADS, V_DIM))]


def make_cache(mesh, **options):
    return kvmesh.KvCache(mesh, **{**dict(q_heads=HEADS, kv_heads=KV_HEADS, k_dim=K_DIM,
                                          v_dim=V_DIM, page_size=4, pages_per_rank=16,
                                          dtype="float32", placement="striped"), **options})


def on_ranks(ranks, body, **options):
    done = []
    kvmesh.run_on_threads(ranks, lambda mesh: done.append(body(mesh)), **options)
    assert len(done) == ranks
    return done


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_prompt_and_decode_are_exact(ranks):
    q, k, v = tensors(23)
    expected, expected_lse = reference(q, k, v)

    def body(mesh):
        with make_cache(mesh) as cache:
            sequence = cache.create()
            step = cache.plan([(sequence, 20)])
            o, lse = step.run(0, q[:20], k[:20], v[:20], lse=True)
            np.testing.assert_allclose(o, expected[:20], atol=1e-5)
            np.testing.assert_allclose(lse, expected_lse[:20], atol=1e-5)
            for token in range(20, 23):
                cache.replan(step, [(sequence, 1)])
                row = slice(token, token + 1)
                out = np.full((1, HEADS, V_DIM), np.nan, np.float32)
                assert step.run(0, q[row], k[row], v[row], out=out) is out
                np.testing.assert_allclose(out, expected[row], atol=1e-5)
            assert cache.length(sequence) == 23
            cache.check_replicas()

    on_ranks(ranks, body)


def test_parts_of_a_step_give_what_run_gives():
    q, k, v = tensors(12)
    expected, expected_lse = reference(q, k, v)

    def body(mesh):
        cache = make_cache(mesh)
        step = cache.plan([(cache.create(), 12)])
        step.append(0, k, v)
        part = step.attend_partial(0, q)
        for o, lse in (step.combine(*part, out_lse=True), kvmesh.combine(mesh, *part, out_lse=True)):
            np.testing.assert_allclose(o, expected, atol=1e-5)
            np.testing.assert_allclose(lse, expected_lse, atol=1e-5)
        share = kvmesh.Combiner(mesh)(*part, scatter="heads")
        heads = slice(mesh.rank * HEADS // 2, (mesh.rank + 1) * HEADS // 2)
        np.testing.assert_allclose(share, expected[:, heads], atol=1e-5)

    on_ranks(2, body)


def test_every_rank_gathers_the_queries_of_all_heads():
    q, _, _ = tensors(12)

    def body(mesh):
        cache = make_cache(mesh)
        step = cache.plan([(cache.create(), 12)])
        heads = slice(mesh.rank * HEADS // 2, (mesh.rank + 1) * HEADS // 2)
        np.testing.assert_array_equal(step.gather_queries(0, q[:, heads]), q)
        out = np.zeros_like(q)
        out[:, heads] = q[:, heads]
        assert step.gather_queries(0, out[:, heads], out) is out
        np.testing.assert_array_equal(out, q)
        with pytest.raises(kvmesh.errors.InvalidArgument, match="gather_queries: share must be"):
            step.gather_queries(0, q)

    on_ranks(2, body)


def test_rows_stay_with_the_owners_of_their_keys():
    q, k, v = tensors(12)
    expected, _ = reference(q, k, v)

    def body(mesh):
        cache = make_cache(mesh)
        step = cache.plan([(cache.create(), 12)], scatter="owner")
        assert step.output_shape()[0] == 12 and len(set(step.token_owners())) == 1
        o = step.run(0, q, k, v)
        if step.token_owners()[0] == mesh.rank:
            np.testing.assert_allclose(o, expected, atol=1e-5)
        part = step.attend_partial(0, q)
        with pytest.raises(kvmesh.errors.InvalidArgument, match="needs a participation mask"):
            kvmesh.combine(mesh, *part, scatter="owner")

    on_ranks(2, body)


def test_sinks_are_a_term_of_the_denominator():
    q, k, v = tensors(12)
    sinks = np.array([0.5, -np.inf, 2, -1], np.float32)
    o, lse = reference(q, k, v)
    expected_lse = np.logaddexp(lse, sinks)
    expected = o * np.exp(lse - expected_lse)[..., None]

    def body(mesh):
        cache = make_cache(mesh)
        step = cache.plan([(cache.create(), 12)])
        whole = step.run(0, q, k, v, lse=True, sinks=sinks)
        for o, lse in (whole, step.combine(*step.attend_partial(0, q, sinks=sinks), out_lse=True)):
            np.testing.assert_allclose(o, expected, atol=1e-5)
            np.testing.assert_allclose(lse, expected_lse, atol=1e-5)

    on_ranks(2, body)


def test_queries_alone_need_no_keys():
    q, k, v = tensors(9)
    expected, _ = reference(q, k, v)

    def body(mesh):
        cache = make_cache(mesh)
        sequence = cache.create()
        cache.plan([(sequence, 9)]).run(0, q, k, v)
        again = cache.plan([(sequence, 0, 2)])
        np.testing.assert_allclose(again.run(0, q[7:]), expected[7:], atol=1e-5)
        with pytest.raises(kvmesh.InvalidArgument, match="k is missing"):
            cache.plan([(sequence, 1)]).run(0, q[:1])

    on_ranks(2, body)


def test_empty_arrays_have_any_strides():
    q, k, v = tensors(7)
    no_q, no_k, no_v = (np.lib.stride_tricks.as_strided(t, (0, *t.shape[1:]), (0, 0, 0))
                        for t in (q, k, v))
    expected, _ = reference(q, k, v)

    def body(mesh):
        cache = make_cache(mesh)
        sequence = cache.create()
        assert cache.plan([]).run(0, no_q).shape == (0, HEADS, V_DIM)
        step = cache.plan([(sequence, 7, 0)])
        assert step.run(0, no_q, k, v).shape == (0, HEADS, V_DIM)
        partial = step.attend_partial(0, no_q)
        assert step.combine(*partial).shape == kvmesh.combine(mesh, *partial).shape == (0, HEADS, V_DIM)
        again = cache.plan([(sequence, 0, 2)])
        np.testing.assert_allclose(again.run(0, q[5:], no_k, no_v), expected[5:], atol=1e-5)

    on_ranks(2, body)


def test_a_rank_without_a_row_takes_part():
    q, k, v = tensors(1)

    def body(mesh):
        cache = make_cache(mesh)
        out, lse = cache.plan([(cache.create(), 1)], scatter="tokens").run(0, q, k, v, lse=True)
        assert len(out) == len(lse) == 1 - mesh.rank
        np.testing.assert_allclose(out, v[:len(out), [0, 0, 1, 1]], atol=1e-6)

    on_ranks(2, body)


def test_masks_and_scores_are_python_functions():
    q, k, v = tensors(15)
    slopes = np.array([0.5, 0.25, 0.125, 0.0625], np.float32)
    window = lambda q, kv: q >= kv and q - kv < 5 and kv % 3 != 1
    expected, expected_lse = reference(q, k, v, window,
                                       lambda s, h, q, kv: 2 * np.tanh(s / 2) + slopes[h] * (kv - q))
    captured = kvmesh.Buffer(slopes)

    def body(mesh):
        cache = make_cache(mesh)
        step = cache.plan(
            [(cache.create(), 15)],
            mask=lambda b, h, q, kv: (q >= kv) & (q - kv < 5) & (kv % 3 != 1),
            score=lambda s, b, h, q, kv: 2 * kvmesh.tanh(s / 2) + captured[h] * (kv - q))
        o, lse = step.run(0, q, k, v, lse=True)
        np.testing.assert_allclose(o, expected, atol=1e-5)
        np.testing.assert_allclose(lse, expected_lse, atol=1e-5)

    on_ranks(2, body)


def test_takes_any_strides_and_half_types():
    q, k, v = tensors(8, dtype=np.float16)
    expected, _ = reference(q, k, v)

    def body(mesh):
        cache = make_cache(mesh, dtype="float16")
        step = cache.plan([(cache.create(), 8)])
        strided = [np.ascontiguousarray(t.transpose(1, 0, 2)).transpose(1, 0, 2) for t in (q, k, v)]
        out = step.run(0, *strided)
        assert out.dtype == np.float16
        np.testing.assert_allclose(out, expected, atol=1e-2)

    on_ranks(1, body)


def test_bfloat16_of_ml_dtypes():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    q, k, v = tensors(8)
    expected, _ = reference(q, k, v)

    def body(mesh):
        cache = make_cache(mesh, dtype="bfloat16")
        step = cache.plan([(cache.create(), 8)])
        out = step.run(0, *[t.astype(bfloat16) for t in (q, k, v)])
        assert out.dtype == bfloat16
        np.testing.assert_allclose(out.astype(float), expected, atol=5e-2)

    on_ranks(1, body)


def test_torch_tensors_in_and_out():
    torch = pytest.importorskip("torch")
    q, k, v = tensors(8)
    expected, _ = reference(q, k, v)

    def body(mesh):
        cache = make_cache(mesh)
        step = cache.plan([(cache.create(), 8)])
        out = step.run(0, *[torch.from_numpy(t) for t in (q, k, v)])
        assert isinstance(out, torch.Tensor)
        np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)
        with pytest.raises(TypeError, match="q: not a tensor"):
            step.run(0, torch.from_numpy(q).to_sparse())
        with pytest.raises(TypeError, match="q: its negative bit is set"):
            step.run(0, torch._neg_view(torch.from_numpy(q)))
        learned = torch.from_numpy(q).requires_grad_()
        with pytest.raises(TypeError, match="q: kvmesh computes no gradients"):
            step.run(0, learned)
        with torch.no_grad():
            step.run(0, learned, torch.from_numpy(k), torch.from_numpy(v))

    on_ranks(2, body)


def test_reproducible_bits_do_not_depend_on_the_ranks():
    q, k, v = tensors(21)

    def body(mesh):
        cache = make_cache(mesh, reproducible=True)
        return cache.plan([(cache.create(), 21)]).run(0, q, k, v)

    (alone,) = on_ranks(1, body)
    for out in on_ranks(3, body):
        np.testing.assert_array_equal(out, alone)


def test_forks_share_pages_and_truncate_frees_them():
    def body(mesh):
        cache = make_cache(mesh, pages_per_rank=8)
        sequence = cache.create()
        q, k, v = tensors(10)
        cache.plan([(sequence, 10)]).run(0, q, k, v)
        fork = cache.fork(sequence)
        assert cache.pages(fork) == cache.pages(sequence)
        free = cache.free_pages()
        cache.truncate(sequence, 4)
        assert (cache.length(sequence), cache.free_pages()) == (4, free)
        cache.erase(fork)
        assert cache.free_pages() == free + 2
        assert {rank for rank, _ in cache.pages(sequence)} <= set(range(mesh.kv_parallel))

    on_ranks(2, body)


def test_other_threads_run_while_a_rank_waits():
    late = threading.Event()

    def body(mesh):
        if mesh.rank == 1:
            late.wait(5)  # the other is in the barrier: it can be only if it let Python go
        elif mesh.rank == 0:
            threading.Timer(0.05, late.set).start()
        mesh.barrier()

    on_ranks(2, body)
    assert late.is_set()
