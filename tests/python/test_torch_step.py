"""Steps as operators of torch: torch.compile gives what the calls give."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import kvmesh
from kvmesh.torch import Step

LAYERS, HEADS, KV_HEADS, DIM = 2, 4, 2, 8


def make_step(mesh, **options):
    cache = kvmesh.KvCache(mesh, layers=LAYERS, q_heads=HEADS, kv_heads=KV_HEADS, k_dim=DIM, v_dim=6,
                           page_size=4, pages_per_rank=16, dtype="float32", placement="striped")
    sequence = cache.create()
    return cache, sequence, Step(cache.plan([(sequence, 9)], **options))


def tensors(tokens, seed):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, heads, dim, generator=random)
            for heads, dim in ((HEADS, DIM), (KV_HEADS, DIM), (KV_HEADS, 6))]


def compiled(function, **options):
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


def test_compiled_steps_give_what_plain_ones_give():
    def model(step, q, k, v):
        for layer in range(LAYERS):
            out = step.run(layer, q, k, v)
            q = q + torch.nn.functional.pad(out, (0, DIM - 6))
        out, lse = step.run(0, q, k, v, lse=True)
        return out, lse

    with kvmesh.Mesh() as mesh:
        results = []
        for wrap in (lambda f: f, lambda f: compiled(f, dynamic=True)):
            cache, sequence, step = make_step(mesh)
            forward = wrap(model)
            said = list(forward(step, *tensors(9, 1)))
            for token in range(3):  # planned in place, other sizes
                cache.replan(step.plan, [(sequence, 1 + token)])
                said += forward(step, *tensors(1 + token, token))
            results.append(said)
        for plain, other in zip(*results):
            torch.testing.assert_close(plain, other, atol=0, rtol=0)


def test_parts_on_ranks_keep_their_order():
    def parts(step, q, k, v):
        step.append(0, k, v)  # has no result, but stays
        out, lse = step.combine(*step.attend_partial(0, q), out_lse=True)
        return out, lse

    def body(mesh):
        cache, _, plain = make_step(mesh)
        other_cache, _, step = make_step(mesh)
        q, k, v = tensors(9, 2)
        for one, other in zip(parts(step, q, k, v), plain.plan.run(0, q, k, v, lse=True)):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)

    kvmesh.run_on_threads(2, body)
    with kvmesh.Mesh() as mesh:  # torch compiles on one thread
        cache, _, step = make_step(mesh)
        q, k, v = tensors(9, 2)
        for one, other in zip(compiled(parts)(step, q, k, v), step.plan.run(0, q, k, v, lse=True)):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_shares_of_the_heads_are_gathered():
    def model(step, share, k, v):
        q = step.gather_queries(0, share)
        return q, step.run(0, q, k, v)

    def body(mesh):
        cache, _, step = make_step(mesh)
        q, k, v = tensors(9, 6)
        mine = q.tensor_split(mesh.size, dim=1)[mesh.rank]
        assert step.plan.query_shape() == q.shape
        gathered, out = model(step, mine, k, v)
        torch.testing.assert_close(gathered, q, atol=0, rtol=0)
        torch.testing.assert_close(out, step.plan.run(0, q, k, v), atol=0, rtol=0)
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = step.gather_queries(0, mode.from_tensor(mine))
            assert (fake.shape, fake.dtype) == (q.shape, q.dtype)

    kvmesh.run_on_threads(2, body)
    with kvmesh.Mesh() as mesh:  # torch compiles on one thread
        cache, _, step = make_step(mesh)
        q, k, v = tensors(9, 6)
        for one, other in zip(compiled(model)(step, q, k, v), (q, step.plan.run(0, q, k, v))):
            torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_sinks_are_passed_on():
    sinks = torch.tensor([0.5, -1.0, 2.0, float("-inf")])

    def model(step, q, k, v):
        parts = step.attend_partial(0, q, sinks=sinks)
        return *step.run(0, q, k, v, sinks=sinks, lse=True), *step.combine(*parts, out_lse=True)

    with kvmesh.Mesh() as mesh:
        cache, _, step = make_step(mesh)
        q, k, v = tensors(9, 5)
        plain = step.plan.run(0, q, k, v, lse=True, sinks=sinks)
        without = step.plan.run(0, q, k, v)
        out, lse, merged, merged_lse = compiled(model)(step, q, k, v)
        torch.testing.assert_close((out, lse), plain, atol=0, rtol=0)
        torch.testing.assert_close((merged, merged_lse), plain)
        torch.testing.assert_close(out[:, 3], without[:, 3])
        assert not torch.allclose(out[:, :3], without[:, :3])


def check_operator(name, *arguments):
    torch.library.opcheck(getattr(torch.ops.kvmesh, name), arguments,
                          test_utils=("test_schema", "test_faketensor"))


def test_the_operators_keep_torch_s_rules():
    with kvmesh.Mesh() as mesh:
        cache, _, step = make_step(mesh)
        q, k, v = tensors(9, 3)
        where = (step._order, step._number)
        for lse in (False, True):
            check_operator("run", *where, 0, q, k, v, None, lse)
        check_operator("append", *where, 0, k, v)
        check_operator("run", *where, 0, q, k, v, torch.ones(HEADS), True)
        check_operator("attend_partial", *where, 0, q, torch.ones(HEADS))
        check_operator("gather_queries", *where, 0, q)
        check_operator("combine", *where, 0, *step.attend_partial(0, q), True)


@pytest.mark.parametrize("scatter", ["heads", "tokens"])
def test_fake_outputs_have_the_rows_of_the_rank(scatter):
    def body(mesh):
        cache, _, step = make_step(mesh, scatter=scatter)
        q, k, v = tensors(9, 4)
        out = step.run(0, q, k, v)
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert step.run(0, *map(mode.from_tensor, (q, k, v))).shape == out.shape

    kvmesh.run_on_threads(2, body)


def test_layers_of_a_group_have_shapes_of_their_own():
    def model(step, inputs):
        outs = [step.run(layer, *each, lse=True) for layer, each in enumerate(inputs)]
        parts = [step.attend_partial(layer, each[0]) for layer, each in enumerate(inputs)]
        return outs, [step.combine(*part, out_lse=True, layer=layer) for layer, part in enumerate(parts)]

    def body(mesh):
        cache = kvmesh.KvCache(mesh, layers=2, q_heads=HEADS, kv_heads=KV_HEADS, k_dim=DIM, v_dim=6,
                               page_size=4, pages_per_rank=16, dtype="float32", placement="striped",
                               groups=[{"layers": [1], "q_heads": 2, "kv_heads": 1, "k_dim": 16,
                                        "v_dim": 10}])
        step = Step(cache.plan([(cache.create(), 5)], scatter="heads"))
        random = torch.Generator().manual_seed(7)
        inputs = [[torch.randn(5, heads, dim, generator=random)
                   for heads, dim in ((q_heads, k_dim), (kv_heads, k_dim), (kv_heads, v_dim))]
                  for q_heads, kv_heads, k_dim, v_dim in ((HEADS, KV_HEADS, DIM, 6), (2, 1, 16, 10))]
        share = mesh.size
        assert step.plan.output_shape() == step.plan.output_shape(0) == (5, HEADS // share, 6)
        assert step.plan.output_shape(1) == (5, 2 // share, 10)
        plain = [step.plan.run(layer, *each, lse=True) for layer, each in enumerate(inputs)]
        outs, merged = model(step, inputs) if share > 1 else compiled(model)(step, inputs)
        torch.testing.assert_close(outs, plain, atol=0, rtol=0)
        torch.testing.assert_close(merged, plain)
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = model(step, [[mode.from_tensor(each) for each in layer] for layer in inputs])
        shapes = [[tuple(each.shape) for each in pair] for pair in plain]
        assert [[[tuple(each.shape) for each in pair] for pair in of] for of in fake] == [shapes] * 2

    kvmesh.run_on_threads(2, body)
    with kvmesh.Mesh() as mesh:  # torch compiles on one thread
        body(mesh)


def test_a_step_ends_with_its_plan():
    from kvmesh.torch import _step
    with kvmesh.Mesh() as mesh:
        before = len(_step._plans)
        cache, _, step = make_step(mesh)
        assert len(_step._plans) == before + 1
        assert repr(step) == f"<kvmesh.torch.Step: {step.plan!r}>"
        del step
        assert len(_step._plans) == before
