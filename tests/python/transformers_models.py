"""Models of transformers, tiny and random, over a KvmeshCache on ranks that are threads: what they
generate is what they generate with "eager" attention. Run by CTest with pytest, by its name: skipped
where torch or transformers are not installed."""

import importlib.util
import inspect
import os

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import kvmesh
from kvmesh.transformers import KvmeshCache

torch.set_num_threads(1)
DEVICE = "cuda" if torch.cuda.is_available() and kvmesh.cuda_device_count() else "cpu"
SMALL = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
         "num_attention_heads": 4, "max_position_embeddings": 256, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 96, "initializer_range": 0.4,
         "tie_word_embeddings": False}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
WINDOWS = {"sliding_window": 6,
           "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
MOE = {"num_experts_per_tok": 2}
CONFIGS = {
    "Llama": lambda: transformers.LlamaConfig(**GROUPED),
    "Qwen3": lambda: transformers.Qwen3Config(**GROUPED),
    "Gemma2": lambda: transformers.Gemma2Config(**GROUPED, **WINDOWS, attn_logit_softcapping=3.0,
                                                query_pre_attn_scalar=8),
    "Gemma3": lambda: transformers.Gemma3TextConfig(**GROUPED, **WINDOWS),
    "GptOss": lambda: transformers.GptOssConfig(**GROUPED, **WINDOWS, **MOE, num_local_experts=4),
    "DeepseekV3": lambda: transformers.DeepseekV3Config(
        **SMALL, **MOE, num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=12, first_k_dense_replace=1, moe_intermediate_size=16,
        n_routed_experts=4, n_group=2, topk_group=1),
    "Mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=6),
    "GPTNeoX": lambda: transformers.GPTNeoXConfig(**SMALL),
    "Llama4": lambda: transformers.Llama4TextConfig(
        **GROUPED, **MOE, num_local_experts=2, attention_chunk_size=8, intermediate_size_mlp=48,
        layer_types=["chunked_attention", "full_attention", "chunked_attention"]),
}
PADDED = ["Llama", "Qwen3", "Gemma2", "Gemma3", "GptOss", "DeepseekV3", "GPTNeoX"]
LENGTHS = [11, 7, 4]
# transformers' name for a cache was past_key_values.
CACHE = ("cache" if "cache" in inspect.signature(transformers.LlamaForCausalLM.forward).parameters
         else "past_key_values")


def model_of(name, attention="eager", seed=1):
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](),
                                                          attn_implementation=attention)
    for name, values in model.named_parameters():
        if "sinks" in name:
            values.data.normal_()
    return model.to(DEVICE).eval()


def batch(lengths=LENGTHS, seed=2):
    """Prompts of these lengths, padded on the left."""
    ids = torch.randint(3, 96, (len(lengths), max(lengths)),
                        generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, -length:] = 1
    return {"input_ids": (ids * mask).to(DEVICE), "attention_mask": mask.to(DEVICE)}


def generate(model, inputs, cache=None, **options):
    return model.generate(**inputs, **{} if cache is None else {CACHE: cache},
                          **{"max_new_tokens": 12, "do_sample": False, **options})


def make_cache(model, mesh, **options):
    return KvmeshCache(model.config, mesh, **{"page_size": 4, "pages_per_rank": 96,
                                              "placement": "striped", **options})


def on_ranks(ranks, model, body, **options):
    """body(cache, rank) on threads that share the model."""
    def rank(mesh):
        with make_cache(model, mesh, **options) as cache:
            body(cache, mesh.rank)
            if cache.kv is not None:
                cache.kv.check_replicas()

    kvmesh.run_on_threads(ranks, rank, device=DEVICE)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", PADDED)
def test_padded_batches_give_eager_s_tokens_and_logits(name, ranks):
    scores = {"return_dict_in_generate": True, "output_logits": True}
    expected = generate(model_of(name), batch(), **scores)
    logits = torch.stack(expected.logits)
    assert len(expected.sequences[:, max(LENGTHS):].unique()) > 9, "a test that sees few tokens"
    model = model_of(name, "kvmesh")

    def body(cache, rank):
        actual = generate(model, batch(), cache, **scores)
        assert torch.equal(actual.sequences, expected.sequences)
        torch.testing.assert_close(torch.stack(actual.logits), logits, rtol=0,
                                   atol=(1e-4 if DEVICE == "cuda" else 1e-5) * float(logits.abs().max()))
        # The last token is never fed back.
        assert cache.stats()["tokens"] == sum(LENGTHS) + len(LENGTHS) * 11
        assert cache.get_seq_length() == max(LENGTHS) + 11
        assert min(cache.stats()["pages"]) > 0 and len(cache.stats()["pages"]) == ranks
        assert cache.kv.length(cache.rows[2]) == LENGTHS[2] + 11

    on_ranks(ranks, model, body)


@pytest.mark.parametrize("name", ["Llama", "Gemma3", "DeepseekV3"])
def test_beams_share_pages(name):
    options = {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5}
    prompts = batch([41, 30])
    expected = generate(model_of(name), prompts, **options)
    model = model_of(name, "kvmesh")

    def body(cache, rank):
        assert torch.equal(generate(model, prompts, cache, **options), expected)
        whole = sum(-(-cache.kv.length(row) // 4) for row in cache.rows)
        assert len(cache.rows) == 8 and sum(cache.stats()["pages"]) < whole / 2

    on_ranks(2, model, body)


@pytest.mark.parametrize("name", ["Llama", "Gemma2"])
def test_drafts_that_do_not_count_are_truncated(name):
    prompt = batch([9])
    prompt = {key: each.repeat(1, 3) for key, each in prompt.items()}  # what lookup finds again
    expected = generate(model_of(name), prompt)
    model = model_of(name, "kvmesh")
    assistants = [model_of("Llama", seed=3) for _ in range(2)]  # which change while they assist

    def body(cache, rank):
        for way in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": assistants[rank]}):
            assert torch.equal(generate(model, prompt, cache, **way), expected)
            assert cache.stats()["tokens"] == cache.get_seq_length() == 27 + 11
            assert min(cache.stats()["pages"]) > 0
            cache.reset()
            assert set(cache.stats()["pages"]) == {0} and cache.get_seq_length() == 0

    for ranks in (1, 2):
        on_ranks(ranks, model, body)


def test_a_conversation_goes_on_in_pieces():
    prompt = batch([15])
    expected = generate(model_of("Gemma3"), prompt)
    more = torch.cat([expected, prompt["input_ids"]], 1)  # the second turn
    inputs = {"input_ids": more, "attention_mask": torch.ones_like(more)}
    expected_more = generate(model_of("Gemma3"), inputs)
    model = model_of("Gemma3", "kvmesh")

    def body(cache, rank):
        assert torch.equal(generate(model, prompt, cache, prefill_chunk_size=4), expected)
        assert torch.equal(generate(model, inputs, cache), expected_more)

    on_ranks(2, model, body)


def test_chunks_of_a_padded_batch():
    """The first chunks of a short prompt are padding alone."""
    expected = generate(model_of("Llama"), batch())
    model = model_of("Llama", "kvmesh")
    on_ranks(2, model, lambda cache, rank: torch.testing.assert_close(
        generate(model, batch(), cache, prefill_chunk_size=3), expected))


def test_masks_of_another_kind_are_traced():
    prompts = batch([13, 13])
    expected = generate(model_of("Llama4"), prompts)
    model = model_of("Llama4", "kvmesh")

    def body(cache, rank):
        assert torch.equal(generate(model, prompts, cache), expected)
        cache.reset()
        with pytest.raises(kvmesh.Unsupported, match="padding"):
            generate(model, batch(), cache)

    on_ranks(2, model, body)


@pytest.mark.parametrize("name", ["Gemma3", "GptOss", "Mistral"])
def test_windows_free_the_pages_behind_them(name):
    """Also of padded batches, and with drafts that are taken back."""
    expected = generate(model_of(name), batch([31, 20, 4]))
    prompt = {key: each.repeat(1, 3) for key, each in batch([9]).items()}
    looked_up = generate(model_of(name), prompt)
    model = model_of(name, "kvmesh")

    def body(cache, rank):
        assert torch.equal(generate(model, batch([31, 20, 4]), cache), expected)
        group = 0 if name == "Mistral" else 1
        for row in cache.rows:
            held = [page for page in cache.kv.pages(row, group) if page is not None]
            assert len(held) <= 3  # of 4 tokens, for a window of 6
            assert name == "Mistral" or None not in cache.kv.pages(row, 0)
        cache.reset()
        assert cache.stats()["pages"] == [0, 0]
        assert torch.equal(generate(model, prompt, cache, prompt_lookup_num_tokens=3), looked_up)

    on_ranks(2, model, body, window_page_share=0.5)


def test_windows_that_are_none_are_refused():
    def body(mesh):
        with pytest.raises(kvmesh.Unsupported, match="sliding window"):
            make_cache(model_of("Llama"), mesh, window_page_share=0.5)
        model = model_of("Gemma3", "kvmesh")
        model.config.layer_types = ["sliding_attention"] * 3  # of which one attends to all
        with make_cache(model, mesh, window_page_share=0.5) as cache:
            model.config.layer_types = CONFIGS["Gemma3"]().layer_types
            with pytest.raises(kvmesh.Unsupported, match="layer 1 attends further"):
                generate(model, batch(), cache)

    kvmesh.run_on_threads(1, body, device=DEVICE)


def attend(model, cache, q, k, v):
    """The attention of a model's only layer, over one forward."""
    from kvmesh.transformers import _attention
    mask = _attention.make_mask(mask_function=transformers.masking_utils.causal_mask_function)
    return _attention.attention(model, q, *cache.update(k, v, 0), mask, scaling=0.3)[0]


def test_ranks_that_have_some_of_the_heads():
    """As with tensor parallelism: 2 x 2 ranks, each with half of the heads."""
    model = model_of("Llama", "kvmesh")
    q, k, v = (torch.randn(2, heads, 9, 8, device=DEVICE) for heads in (4, 2, 2))
    whole = []
    on_ranks(1, model, lambda cache, rank: whole.append(attend(model, cache, q, k, v)))

    def rank(mesh):
        mine = lambda values: values.chunk(2, 1)[mesh.head_rank]
        with make_cache(model, mesh) as cache:
            out = attend(model, cache, mine(q), mine(k), mine(v))
            torch.testing.assert_close(out, whole[0].chunk(2, 2)[mesh.head_rank])

    kvmesh.run_on_threads(4, rank, head_parallel=2, device=DEVICE)


def refuses(error, match, name="Llama", attention="kvmesh", before=None, inputs=None, **options):
    model = model_of(name, attention)

    def body(cache, rank):
        if before is not None:
            generate(model, before, cache)
        with pytest.raises(error, match=match):
            generate(model, inputs or batch(), cache, **options)
        cache.reset()
        if attention == "kvmesh":
            generate(model, batch([5]), cache)

    on_ranks(1, model, body, pages_per_rank=16)


def test_refuses_what_it_would_get_wrong():
    on_the_right = batch()
    on_the_right["attention_mask"] = on_the_right["attention_mask"].flip(1)
    refuses(kvmesh.Unsupported, "padded on the left", inputs=on_the_right)
    refuses(kvmesh.Unsupported, "attn_implementation", attention="eager")
    refuses(kvmesh.InvalidArgument, "a batch of 3, and a cache with 2 rows", before=batch([3, 2]))
    refuses(kvmesh.OutOfPages, "pages", inputs=batch([30, 30, 30]))
    changed = batch([20])
    changed["attention_mask"][0, :3] = 0
    refuses(kvmesh.InvalidArgument, "before the new ones", before=batch([5]), inputs=changed)
    with pytest.raises(kvmesh.InvalidArgument, match="KvmeshCache"):
        generate(model_of("Llama", "kvmesh"), batch())
    with kvmesh.Mesh(device=DEVICE) as mesh:
        config = transformers.Qwen3NextConfig(**GROUPED)
        with pytest.raises(kvmesh.Unsupported, match="linear_attention"):
            KvmeshCache(config, mesh)
        model = model_of("GPTNeoX", "kvmesh").train()
        model.gpt_neox.layers[0].attention.attention_dropout = 0.5
        with make_cache(model, mesh) as cache, pytest.raises(kvmesh.Unsupported, match="dropout"):
            model(**batch(), **{CACHE: cache})


def test_rows_repeat_and_end():
    model = model_of("Llama", "kvmesh")

    def body(cache, rank):
        expected = generate(model, batch([9]), cache)
        cache.batch_repeat_interleave(3)
        assert cache.batch_size == 3 and sum(cache.stats()["pages"]) == 5
        cache.batch_select_indices(torch.tensor([False, True, True]))
        assert cache.batch_size == 2
        cache.batch_select_indices(torch.tensor([1]))
        again = {"input_ids": expected, "attention_mask": torch.ones_like(expected)}
        cache.crop(9 - cache.get_seq_length())
        assert torch.equal(generate(model, again, cache, max_new_tokens=1)[:, :21], expected)
        assert cache.stats()["tokens"] == 21

    on_ranks(2, model, body)


def test_pages_may_have_a_type_of_their_own():
    model = model_of("Llama", "kvmesh")
    for dtype in (None, "bfloat16"):
        def body(cache, rank):
            generate(model, batch(), cache)
            assert (dtype or "float32") in repr(cache)

        on_ranks(1, model, body, dtype=dtype)


def pages_of(model, **memory):
    """How many pages a rank's share of the cache has."""
    pages = []

    def body(cache, rank):
        generate(model, batch(), cache)
        cache.reset()
        pages.append(cache.kv.free_pages())

    on_ranks(1, model, body, pages_per_rank=0, **memory)
    return pages[0]


def test_memory_is_given_in_bytes_or_as_a_fraction():
    model = model_of("Llama", "kvmesh")
    page_bytes = 3 * 2 * 2 * 8 * 4 * 4  # layers, keys and values, heads, dim, tokens, float32
    for pages in (70_000, 140_000):
        assert 0.8 * pages < pages_of(model, bytes=pages * page_bytes) <= pages
    # Other programs change how much memory is free.
    few, many = [pages_of(model, memory_fraction=fraction) for fraction in (1e-4, 4e-4)]
    assert 2 * few < many < 8 * few


@pytest.mark.skipif(not os.environ.get("KVMESH_MODEL") or
                    not all(map(importlib.util.find_spec, ("gguf", "accelerate"))),
                    reason="KVMESH_MODEL names no GGUF file, or gguf or accelerate is not installed")
def test_a_real_model():
    folder, file = os.path.split(os.environ["KVMESH_MODEL"])
    load = lambda auto, **more: auto.from_pretrained(folder, gguf_file=file, **more)
    tokenizer = load(transformers.AutoTokenizer, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    inputs = tokenizer(["The capital of France is", "One, two, three, four, five,"], padding=True,
                       return_tensors="pt").to(DEVICE)
    model = load(transformers.AutoModelForCausalLM, attn_implementation="eager").to(DEVICE).eval()
    expected = generate(model, inputs)
    assert "Paris" in tokenizer.decode(expected[0])
    model.set_attn_implementation("kvmesh")
    on_ranks(4, model, lambda cache, rank: torch.testing.assert_close(
        generate(model, inputs, cache), expected))
