"""Text of a Hugging Face model whose KV cache lies on all ranks:

    mpirun -np 4 python -m kvmesh.generate --model SmolLM2.gguf --prompt "The sky is blue because"
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any, Sequence

import kvmesh


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kvmesh.generate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True,
                        help="a folder, a name that transformers knows, or a GGUF file (needs the "
                             "packages gguf and accelerate)")
    parser.add_argument("--prompt", required=True, action="append",
                        help="what the model continues; more of them make a batch")
    parser.add_argument("--tokens", type=int, default=64, help="new ones (default 64)")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--sample", type=int, metavar="SEED", help="draw tokens; default: the likeliest")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--dtype", default="auto", help="of the weights and pages, e.g. bfloat16")
    parser.add_argument("--page-size", type=int, default=16)
    return parser.parse_args(arguments)


def load(options: argparse.Namespace, device: str) -> tuple[Any, Any]:
    """Returns (model, tokenizer)."""
    import kvmesh.transformers  # registers the attention
    from transformers import AutoModelForCausalLM, AutoTokenizer, utils
    utils.logging.disable_progress_bar()  # of every rank
    path, source = Path(options.model), {}
    if path.suffix == ".gguf":
        source, path = {"gguf_file": path.name}, path.parent
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="kvmesh",
                                                 dtype=options.dtype, **source)
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", **source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device).eval(), tokenizer


def generate(model: Any, tokenizer: Any, mesh: kvmesh.Mesh,
             options: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Returns (texts, KvmeshCache.stats())."""
    from transformers import set_seed
    inputs = tokenizer(options.prompt, return_tensors="pt", padding=True, return_token_type_ids=False)
    rows, prompt_tokens = inputs["input_ids"].shape
    pages = rows * options.beams * (-(-(prompt_tokens + options.tokens) // options.page_size) + 1)
    set_seed(options.sample or 0)  # every rank draws the same
    # transformers calls it past_key_values, and cache since 5.24.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    with kvmesh.transformers.KvmeshCache(model.config, mesh, page_size=options.page_size,
                                         pages_per_rank=pages, home_threshold_tokens=0) as cache:
        tokens = model.generate(**inputs.to(model.device), **{name: cache},
                                max_new_tokens=options.tokens, num_beams=options.beams,
                                do_sample=options.sample is not None)
        return tokenizer.batch_decode(tokens, skip_special_tokens=True), cache.stats()


def main(arguments: Sequence[str] | None = None) -> tuple[list[str], dict[str, Any]]:
    options = parse(arguments)
    with kvmesh.Mesh(device=options.device) as mesh:
        texts, stats = generate(*load(options, mesh.device), mesh, options)
        if mesh.rank == 0:
            print(*texts, sep="\n---\n")
            print(f"\n{stats['tokens']} tokens in the cache")
            for rank, pages in enumerate(stats["pages"]):
                print(f"rank {rank}  {'#' * pages} {pages} pages")
    return texts, stats


if __name__ == "__main__":
    main()
