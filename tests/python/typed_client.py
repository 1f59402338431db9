"""A program that test_types.py gives to mypy. It is not run: the tensors have any type."""

from typing import Any, Optional, Tuple

import kvmesh
from typing_extensions import assert_type


def mask(b: kvmesh.Expr, h: kvmesh.Expr, q: kvmesh.Expr, kv: kvmesh.Expr) -> kvmesh.Expr:
    return (q >= kv) & (q - kv < 5)


def step_on(mesh: kvmesh.Mesh, q: Any, k: Any, v: Any) -> Any:
    with kvmesh.KvCache(mesh, q_heads=2, kv_heads=1, k_dim=8, pages_per_rank=4) as cache:
        assert_type(cache, kvmesh.KvCache)
        sequence = assert_type(cache.create(), int)
        step = assert_type(cache.plan([(sequence, 3)], mask=kvmesh.MaskMod(mask)), kvmesh.StepPlan)
        assert_type(cache.try_plan([(sequence, 1)]), Optional[kvmesh.StepPlan])
        assert_type(step.output_shape(0), Tuple[int, int, int])
        o, lse = step.attend_partial(0, q)
        with kvmesh.Combiner(mesh) as combiner:
            assert_type(combiner, kvmesh.Combiner)
            combiner(o, lse, scatter="heads")
        kvmesh.combine(mesh, o, lse, out_lse=True)
        try:
            return step.run(0, q, k, v, lse=True)
        except kvmesh.OutOfPages as full:
            assert_type(full.asked_pages, int)
    return None


def pages_of_an_engine(mesh: kvmesh.Mesh, layer: kvmesh.Pool) -> kvmesh.ExternalPlan:
    with kvmesh.ExternalPool(mesh, layer, q_heads=2) as pool:
        return pool.plan([0, 1], [3], [[0]])


with kvmesh.Mesh(device="cpu", head_parallel=1, deadline=5.0) as world:
    assert_type(world, kvmesh.Mesh)
    assert isinstance(world, kvmesh.Mesh)
    assert_type(world.rank, int)
    step_on(world, None, None, None)
kvmesh.run_on_threads(2, lambda mesh: step_on(mesh, None, None, None))
