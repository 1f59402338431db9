"""Attention over pages that the engine owns."""

import ctypes

import numpy as np
import pytest

import kvmesh
from test_attention import HEADS, KV_HEADS, K_DIM, V_DIM, on_ranks, reference, tensors

PAGES, PAGE = 12, 4
ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
ctypes.pythonapi.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)


def make_pool(dtype=np.float32):
    """K and V of a page in one array [pages, 2, page, heads, dim], as engines have them."""
    keys = np.full((PAGES, PAGE, KV_HEADS, K_DIM), np.nan, dtype)
    values = np.full((PAGES, PAGE, KV_HEADS, V_DIM), np.nan, dtype)
    return kvmesh.Pool(keys, values, order="nhd")


@pytest.mark.parametrize("ranks, interleave", [(1, 0), (2, 0), (2, 1)])
def test_block_tables(ranks, interleave):
    q, k, v = tensors(22)
    expected, expected_lse = reference(q, k, v)

    def body(mesh):
        layer = make_pool()
        pool = kvmesh.ExternalPool(mesh, layer, q_heads=HEADS, interleave=interleave)
        table = np.array([[7, 2, 9, 0, 4, 11]])
        step = pool.plan([0, 20], [20], table, appended=[20])
        assert (step.query_tokens, step.append_tokens) == (20, 20)
        out, lse = step.run(layer, q[:20], k[:20], v[:20], lse=True)
        np.testing.assert_allclose(out, expected[:20], atol=1e-5)
        np.testing.assert_allclose(lse, expected_lse[:20], atol=1e-5)
        pool.replan(step, [0, 2], [22], table[0], indptr=[0, 6], appended=[2])
        np.testing.assert_allclose(step.run(layer, q[20:], k[20:], v[20:]), expected[20:],
                                   atol=1e-5)
        heads = slice(mesh.kv_rank * HEADS // ranks, (mesh.kv_rank + 1) * HEADS // ranks)
        np.testing.assert_array_equal(step.gather_queries(q[20:, heads]), q[20:])
        # Without k nothing is appended.
        partial = step.attend_partial(layer, q[20:])
        np.testing.assert_allclose(step.combine(*partial), expected[20:], atol=1e-5)
        # Each query sees its list.
        lists = np.full((2, 25), -1)
        lists[0, :21] = np.arange(21)
        lists[1, 3:] = np.arange(22)
        listed = pool.plan([0, 2], [22], table, token_lists=lists, mask=kvmesh.no_mask())
        np.testing.assert_allclose(listed.run(layer, q[20:]), expected[20:], atol=1e-5)

    on_ranks(ranks, body)


def test_logical_pages_and_options():
    q, k, v = tensors(9)
    expected, _ = reference(q, k, v)

    def body(mesh):
        layer = make_pool()
        pool = kvmesh.ExternalPool(mesh, layer, q_heads=HEADS)
        mine = [[0, 2], [1]][mesh.kv_rank]  # logical pages
        indices = [5, 3][: len(mine)]
        step = pool.plan([0, 9], [9], indices, indptr=[0, len(mine)], logical=mine, appended=[9],
                         limits=(1, 9), mask=kvmesh.causal())
        np.testing.assert_allclose(step.run(layer, q, k, v), expected, atol=1e-5)

    on_ranks(2, body)


def test_refuses_what_does_not_fit():
    with kvmesh.Mesh() as mesh:
        layer = make_pool()
        pool = kvmesh.ExternalPool(mesh, layer, q_heads=HEADS)
        with pytest.raises(kvmesh.InvalidArgument, match="page 12"):
            pool.plan([0, 1], [4], [[PAGES]])
        with pytest.raises(kvmesh.InvalidArgument, match="indptr"):
            pool.plan([0, 1], [4], [1])
        with pytest.raises(TypeError, match="colour"):
            pool.plan([0, 1], [4], [[1]], colour="red")
        with pytest.raises(kvmesh.InvalidArgument, match="fixed_split_tokens is 100"):
            pool.plan([0, 1], [4], [[1]], fixed_split_tokens=100)
        with pytest.raises(kvmesh.InvalidArgument, match="order"):
            kvmesh.Pool(np.zeros((1, 1, 1, 1), np.float32), order="dhn", v_dim=1)
        with pytest.raises(kvmesh.InvalidArgument, match="v_dim"):
            kvmesh.Pool(np.zeros((1, 1, 1, 1), np.float32))


def test_page_tables_are_int32():
    with kvmesh.Mesh() as mesh:
        layer = make_pool()
        pool = kvmesh.ExternalPool(mesh, layer, q_heads=HEADS)
        for wrong in ([[2.9]], [[np.nan]], [[True]], np.array([[2.0]])):
            with pytest.raises(TypeError, match="indices holds .*integers"):
                pool.plan([0, 1], [4], wrong)
        for wrong in ([4.9], [np.nan], [np.inf]):
            with pytest.raises(TypeError, match="kv_lens holds float64"):
                pool.plan([0, 1], wrong, [[2]])
        with pytest.raises(OverflowError, match="indices holds int32: 4294967297 does not fit"):
            pool.plan([0, 1], [4], [[2**32 + 1]])
        with pytest.raises(TypeError, match="indices has 3 dimensions"):
            pool.plan([0, 1], [4], [[[2]]])
        with pytest.raises(TypeError, match="scale has no such value, not 'x'"):
            pool.plan([0, 1], [4], [[2]], scale="x")


class OnGpu:
    """An array that says it is on a GPU."""

    def __init__(self, numbers, dtype=np.int32):
        self.numbers = np.array(numbers, dtype)

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **_):
        capsule = self.numbers.__dlpack__()
        address = ctypes.pythonapi.PyCapsule_GetPointer(capsule, b"dltensor")
        ctypes.c_int32.from_address(address + ctypes.sizeof(ctypes.c_void_p)).value = 2  # its device
        return capsule


def test_page_tables_on_a_gpu_are_for_a_mesh_on_it():
    with kvmesh.Mesh() as mesh:
        pool = kvmesh.ExternalPool(mesh, make_pool(), q_heads=HEADS)
        step = pool.plan([0, 1], [4], [[1]])
        for tables in (([0, 1], [4], OnGpu([[1]])), ([0, 1], OnGpu([4]), [[1]]), (OnGpu([0, 1]), [4], [[1]])):
            with pytest.raises(kvmesh.InvalidArgument, match="memory of GPU 0, the mesh's device is host memory"):
                pool.plan(*tables)
            with pytest.raises(kvmesh.InvalidArgument, match="memory of GPU 0"):
                pool.replan(step, *tables)
        for dtype in (np.int64, np.float32):
            with pytest.raises(TypeError, match="kv_lens: an array on a GPU .*int32"):
                pool.plan([0, 1], OnGpu([4], dtype), [[1]])


def test_a_batch_may_be_empty():
    with kvmesh.Mesh() as mesh:
        layer = make_pool()
        pool = kvmesh.ExternalPool(mesh, layer, q_heads=HEADS)
        q, _, _ = tensors(0)
        for step in (pool.plan([0], [], np.zeros((0, 2), np.int32)), pool.plan([0], [], [], indptr=[0])):
            assert step.run(layer, q).shape == (0, HEADS, V_DIM)


def test_float8_and_latent_pages():
    bits = np.zeros((PAGES, 1, PAGE, 16), np.uint8)
    scales = np.zeros((PAGES, 1, PAGE), np.float32)
    layer = kvmesh.Pool(bits, v_dim=8, k_scales=scales)
    random = np.random.default_rng(3)
    q, k = (random.standard_normal((5, heads, 16)).astype(np.float32) for heads in (HEADS, 1))
    expected, _ = reference(q, k, k[..., :8])
    with kvmesh.Mesh() as mesh:
        pool = kvmesh.ExternalPool(mesh, layer, q_heads=HEADS)
        out = pool.plan([0, 5], [5], [[3, 1]], appended=[5]).run(layer, q, k)
        assert 1e-4 < np.abs(out - expected).max() < 0.3
        assert bits.any() and (scales > 0).sum() == 5
