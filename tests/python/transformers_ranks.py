"""python -m kvmesh.generate on the ranks of mpirun, with a tiny random model: it writes what the model
writes with "eager" attention. Run by CTest; ends with 77 where torch or transformers are not
installed."""

import importlib.util
import os
import shutil
import sys
import tempfile

if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
    print("skipped: torch or transformers is not installed")
    sys.exit(77)

import torch
import transformers
from torch import distributed

import kvmesh
from kvmesh.generate import generate, main, parse

PROMPTS = ["the cat sat on", "a dog"]
WORDS = "<pad> <end> <unknown> the a cat dog sat ran on in mat house and then slept".split()
FOLDER = os.path.join(tempfile.gettempdir(), f"kvmesh_generate_{os.getppid()}")  # mpirun's number


def save_model():
    from tokenizers import Tokenizer, models, pre_tokenizers
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unknown>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>",
                                         eos_token="<end>").save_pretrained(FOLDER)
    torch.manual_seed(1)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.4, bos_token_id=None,
        eos_token_id=None, pad_token_id=0, max_position_embeddings=64)).save_pretrained(FOLDER)


def texts(**options):
    """What one process writes with eager attention."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER, padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, attn_implementation="eager")
    inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True, return_token_type_ids=False)
    transformers.set_seed(5)
    return tokenizer.batch_decode(model.generate(**inputs, max_new_tokens=12, **options),
                                  skip_special_tokens=True)


ARGUMENTS = ["--model", FOLDER, "--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "--tokens", "12",
             "--page-size", "4", "--device", "cpu"]


def run(*arguments):
    return main([*ARGUMENTS, *arguments])


def test():
    written, stats = run()
    assert written == texts(do_sample=False), written
    assert stats["tokens"] == 4 + 2 + 2 * 11 and min(stats["pages"]) > 0, stats
    assert run("--sample", "5")[0] == texts(do_sample=True)
    assert run("--beams", "3")[0] == texts(do_sample=False, num_beams=3)


def test_tensor_parallelism():
    """Each rank has half of the weights, and its heads' part of the cache. To torch each row of the
    mesh is a job of its own."""
    with kvmesh.Mesh(head_parallel=2) as mesh:
        os.environ["LOCAL_RANK"] = str(mesh.head_rank)
        distributed.init_process_group("gloo", init_method=f"file://{FOLDER}/meeting_{mesh.kv_rank}",
                                       rank=mesh.head_rank, world_size=2)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            FOLDER, attn_implementation="kvmesh",
            distributed_config=transformers.distributed.DistributedConfig(tp_plan="auto", tp_size=2))
        weights = model.model.layers[0].self_attn.q_proj.weight
        assert getattr(weights, "to_local", lambda: weights)().shape == (16, 32), weights
        tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER, padding_side="left")
        written, stats = generate(model, tokenizer, mesh, parse(ARGUMENTS))
        assert written == texts(do_sample=False), written
        assert len(stats["pages"]) == mesh.kv_parallel and min(stats["pages"]) > 0, stats
        distributed.destroy_process_group()


torch.set_num_threads(1)
with kvmesh.Mesh() as mesh:
    assert mesh.size in (2, 4)
    if mesh.rank == 0:
        save_model()
    mesh.barrier()
    test()
    # transformers would put the weights on GPUs if there are any, and wants accelerate to divide them.
    if not torch.cuda.is_available() and importlib.util.find_spec("accelerate"):
        test_tensor_parallelism()
    mesh.barrier()
    if mesh.rank == 0:
        shutil.rmtree(FOLDER)
