"""The cache and its steps with CUDA tensors, against attention in float64 by numpy."""

import numpy as np
import pytest

import kvmesh
from test_attention import reference

torch = pytest.importorskip("torch", reason="torch is not installed")

import kvmesh.torch

if not (torch.cuda.is_available() and kvmesh.cuda_device_count()):
    pytest.skip("no GPU here", allow_module_level=True)

HEADS, KV_HEADS, DIM = 4, 2, 64
WITHIN = {"float32": 1e-4, "bfloat16": 3e-2}


@pytest.fixture
def mesh():
    with kvmesh.Mesh(device="cuda") as mesh:
        yield mesh


def tensors(tokens, dtype, seed=0):
    """q, k, v on the GPU, of numbers that `dtype` has, and as numpy's arrays."""
    random = np.random.default_rng(seed)
    there = [torch.from_numpy(random.standard_normal((tokens, heads, DIM))).to(
        "cuda", getattr(torch, dtype)) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return there, [t.cpu().double().numpy() for t in there]


def make_cache(mesh, dtype, **options):
    return kvmesh.KvCache(mesh, q_heads=HEADS, kv_heads=KV_HEADS, k_dim=DIM, page_size=16,
                          pages_per_rank=16, dtype=dtype, **options)


def check(out, expected, dtype):
    np.testing.assert_allclose(out.double().cpu().numpy(), expected, atol=WITHIN[dtype])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prompt_and_decode_are_exact(mesh, dtype):
    (q, k, v), known = tensors(53, dtype)
    expected, expected_lse = reference(*known)
    with make_cache(mesh, dtype) as cache:
        sequence = cache.create()
        step = cache.plan([(sequence, 50)])
        out, lse = step.run(0, q[:50], k[:50], v[:50], lse=True)
        assert out.is_cuda and lse.dtype == torch.float32
        check(out, expected[:50], dtype)
        check(lse, expected_lse[:50], dtype)
        for row in (slice(50, 51), slice(51, 53)):
            cache.replan(step, [(sequence, row.stop - row.start)])
            out = torch.full((row.stop - row.start, HEADS, DIM), torch.nan, dtype=q.dtype,
                             device="cuda")
            assert step.run(0, q[row], k[row], v[row], out=out) is out
            check(out, expected[row], dtype)
        part = step.attend_partial(0, q[51:])
        check(step.combine(*part), expected[51:], dtype)


def test_masks_and_scores_read_tensors_of_the_gpu(mesh):
    (q, k, v), known = tensors(40, "bfloat16")
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625], device="cuda")
    expected, _ = reference(*known, lambda q, kv: q >= kv and q - kv < 9,
                            lambda s, h, q, kv: s + float(slopes[h]) * (kv - q))
    captured = kvmesh.Buffer(slopes)
    with make_cache(mesh, "bfloat16") as cache:
        step = cache.plan([(cache.create(), 40)], mask=lambda b, h, q, kv: (q >= kv) & (q - kv < 9),
                          score=lambda s, b, h, q, kv: s + captured[h] * (kv - q))
        check(step.run(0, q, k, v), expected, "bfloat16")


def test_a_graph_is_replayed_while_a_sequence_grows(mesh):
    (q, k, v), known = tensors(24, "bfloat16")
    expected, _ = reference(*known)
    with make_cache(mesh, "bfloat16") as cache:
        sequence = cache.create()
        cache.plan([(sequence, 20)]).run(0, q[:20], k[:20], v[:20])
        step = kvmesh.torch.Step(cache.plan([(sequence, 1)], limits=(1, 1)))
        now = [t[20:21].clone() for t in (q, k, v)]
        check(step.run(0, *now), expected[20:21], "bfloat16")
        cache.replan(step.plan, [(sequence, 1)])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = step.run(0, *now)
        for token in (21, 22, 23):
            if token > 21:
                cache.replan(step.plan, [(sequence, 1)])
            for to, of in zip(now, (q, k, v)):
                to.copy_(of[token:token + 1])
            graph.replay()
            check(out, expected[token:token + 1], "bfloat16")


def test_a_stream_may_be_named(mesh):
    (q, k, v), known = tensors(20, "float32")
    expected, _ = reference(*known)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with make_cache(mesh, "float32") as cache:
        out = torch.empty(20, HEADS, DIM, device="cuda")
        cache.plan([(cache.create(), 20)]).run(0, q, k, v, out=out, stream=stream)
        mesh.wait(stream)
        check(out, expected, "float32")


def test_pages_of_an_engine(mesh):
    (q, k, v), known = tensors(40, "bfloat16")
    expected, _ = reference(*known)
    pages = torch.full((8, 2, 16, KV_HEADS, DIM), torch.nan, dtype=torch.bfloat16, device="cuda")
    layer = kvmesh.Pool(pages[:, 0], pages[:, 1], order="nhd")
    pool = kvmesh.ExternalPool(mesh, layer, q_heads=HEADS)
    step = pool.plan([0, 40], [40], [[6, 1, 3]], appended=[40])
    check(step.run(layer, q, k, v), expected, "bfloat16")


def test_page_tables_on_the_gpu(mesh):
    (q, k, v), known = tensors(40, "bfloat16")
    expected, _ = reference(*known)
    pages = torch.full((8, 2, 16, KV_HEADS, DIM), torch.nan, dtype=torch.bfloat16, device="cuda")
    layer = kvmesh.Pool(pages[:, 0], pages[:, 1], order="nhd")
    pool = kvmesh.ExternalPool(mesh, layer, q_heads=HEADS)
    on_gpu = lambda numbers: torch.tensor(numbers, dtype=torch.int32, device="cuda")
    table, lengths = on_gpu([[6, 1, 3]]), on_gpu([38])
    step = pool.plan([0, 38], lengths, table, appended=on_gpu([38]))
    check(step.run(layer, q[:38], k[:38], v[:38]), expected[:38], "bfloat16")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        lengths += 2
        pool.replan(step, on_gpu([0, 2]), lengths, table[0], indptr=on_gpu([0, 3]),
                    appended=on_gpu([2]))
        out = step.run(layer, q[38:], k[38:], v[38:])
    mesh.wait(stream)
    check(out, expected[38:], "bfloat16")
    with pytest.raises(TypeError, match="indices: .*int32"):
        pool.plan([0, 1], [4], table.long())
    with pytest.raises(TypeError, match="indices: .*contiguous"):
        pool.plan([0, 1], [4], on_gpu([[6, 1, 3, 0]])[:, ::2])


def test_arrays_of_cupy(mesh):
    cupy = pytest.importorskip("cupy")
    (q, k, v), known = tensors(20, "float32")
    expected, _ = reference(*known)
    torch.cuda.synchronize()
    with make_cache(mesh, "float32") as cache:
        out = cache.plan([(cache.create(), 20)]).run(0, *map(cupy.from_dlpack, (q, k, v)),
                                                     stream=cupy.cuda.get_current_stream())
        assert isinstance(out, cupy.ndarray)
        np.testing.assert_allclose(out.get(), expected, atol=WITHIN["float32"])


def test_pages_come_back_on_the_stream_of_the_steps(mesh):
    (q, k, v), known = tensors(64, "float32")
    expected, _ = reference(*known)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with make_cache(mesh, "float32", prefix_cache=True, tiers={"host_bytes": 1 << 22}) as cache:
        key = cache.make_prefix_key()
        key.append(list(range(63)))
        step = cache.plan([])
        for found in (0, 48):
            sequence = cache.create_with_prefix(key, after=stream)
            assert cache.length(sequence) == found
            cache.replan(step, [(sequence, 64 - found)], stream=stream)
            with torch.cuda.stream(stream):
                out = step.run(0, q[found:], k[found:], v[found:], stream=stream)
            mesh.wait(stream)
            check(out, expected[found:], "float32")
            cache.publish(sequence, key)
            cache.erase(sequence)
            large = cache.create()
            cache.reserve(large, 16 * 16, after=stream)  # evicts all
            cache.erase(large)
