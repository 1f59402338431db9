"""Tiny random models in vLLM over kvmesh's attention, and in transformers: the same tokens. Run by
vllm_cpu.sh, as `vllm_cpu.py CASE` or `vllm_cpu.py all`."""

import os
import subprocess
import sys
import tempfile

import torch
import transformers

TOKENS = 24
SMALL = {"vocab_size": 128, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32, "eos_token_id": None,
         "max_position_embeddings": 512, "initializer_range": 0.2, "tie_word_embeddings": False}
WINDOWS = {"sliding_window": 20,
           "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
MODELS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    # Its embedding is its last layer, too, in vLLM.
    "gemma2": lambda: transformers.Gemma2Config(**SMALL | {"tie_word_embeddings": True}, **WINDOWS,
                                                attn_logit_softcapping=3.0,
                                                query_pre_attn_scalar=32),
    "gpt-oss": lambda: transformers.GptOssConfig(**SMALL, **WINDOWS, num_local_experts=4,
                                                 num_experts_per_tok=2),
    # As Gemma 2's, its embedding is its last layer, too.
    "bloom": lambda: transformers.BloomConfig(vocab_size=128, hidden_size=128, n_layer=3, n_head=4,
                                              initializer_range=0.4, bos_token_id=None,
                                              eos_token_id=None, pad_token_id=None),
}
# name: model, vLLM's options
CASES = {
    "llama": ("llama", {}),
    "llama-dcp2": ("llama", {"tensor_parallel_size": 2, "decode_context_parallel_size": 2}),
    "gemma2": ("gemma2", {}),
    "gpt-oss": ("gpt-oss", {}),  # sinks
    "bloom": ("bloom", {}),  # ALiBi
}


def prompts():
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, 127, (length,), generator=generator).tolist()
            for length in (5, 37, 130)]


def generate_with_transformers(model):
    return [model.generate(torch.tensor([prompt]), max_new_tokens=TOKENS,
                           do_sample=False)[0, len(prompt):].tolist() for prompt in prompts()]


def attention_of(worker):
    """The ranks of the worker's meshes, and the modules of its layers' attention."""
    from kvmesh.vllm._group import _meshes
    layers = worker.vllm_config.compilation_config.static_forward_context.values()
    # gpt-oss's experts are there, too, and have no attention.
    modules = {type(layer.impl).__module__ for layer in layers if hasattr(layer, "impl")}
    return [[mesh.size for mesh in _meshes.values()], sorted(modules)]


def generate_with_vllm(folder, options):
    from vllm import LLM, SamplingParams
    llm = LLM(folder, dtype="float32", max_model_len=256, block_size=32, max_num_batched_tokens=64,
              enable_chunked_prefill=True, enforce_eager=True, skip_tokenizer_init=True, **options)
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts()], greedy)
    ranks = options.get("decode_context_parallel_size", 1)
    for attention in llm.collective_rpc(attention_of):
        assert attention == [[ranks], ["kvmesh.vllm._backend"]], attention
    return [list(output.outputs[0].token_ids) for output in outputs]


def run(case):
    name, options = CASES[case]
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(MODELS[name](),
                                                          attn_implementation="eager").eval()
    for name_of_values, values in model.named_parameters():
        if "sinks" in name_of_values:  # which are made as 0
            values.data.normal_()
    # Or a tied one repeats the newest token.
    model.get_input_embeddings().weight.data.mul_(0.1)
    expected = generate_with_transformers(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        actual = generate_with_vllm(folder, options)
    same = sum(a == b for rows in zip(actual, expected) for a, b in zip(*rows))
    several = len({token for row in expected for token in row})
    print(f"{case}: {same} of {TOKENS * len(expected)} tokens equal, {several} different ones")
    assert actual == expected and several > 9, (actual, expected)


if __name__ == "__main__":
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # attention_of is sent to the workers
    if sys.argv[1] == "all":
        for each in CASES:
            subprocess.run([sys.executable, __file__, each], check=True)
    else:
        run(sys.argv[1])
