"""Models of Hugging Face transformers whose KV cache is spread over all ranks.

    import kvmesh.transformers                            # registers the attention "kvmesh"

    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="kvmesh")
    with kvmesh.Mesh() as mesh:
        cache = kvmesh.transformers.KvmeshCache(model.config, mesh, pages_per_rank=1024)
        tokens = model.generate(**inputs, past_key_values=cache)

Every rank holds the weights and makes the same calls with the same inputs and seed.
"""

from transformers import AttentionInterface as _AttentionInterface
from transformers import AttentionMaskInterface as _AttentionMaskInterface

from . import _attention
from ._cache import KvmeshCache

_AttentionInterface.register("kvmesh", _attention.attention)
_AttentionMaskInterface.register("kvmesh", _attention.make_mask)

__all__ = ["KvmeshCache"]
