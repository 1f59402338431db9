"""Attention over vLLM's block tables and pool on CPUs, with decode context parallelism."""

import kvmesh
import torch
from vllm.distributed import get_dcp_group
from vllm.v1.attention.backend import (AttentionBackend, AttentionImpl, AttentionMetadataBuilder,
                                       AttentionType, MultipleOf)
from vllm.v1.kv_cache_interface import KVCacheLayout

from ._group import mesh_of


class Backend(AttentionBackend):
    supported_dtypes = [torch.float16, torch.bfloat16, torch.float32]
    supported_kv_cache_dtypes = ["auto", "float16", "bfloat16"]

    @staticmethod
    def get_name():
        return "CPU_ATTN"  # vLLM looks for a member of AttentionBackendEnum: the one replaced

    @staticmethod
    def get_impl_cls():
        return Impl

    @staticmethod
    def get_builder_cls():
        return Builder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec=None):
        return [MultipleOf(1)]

    @classmethod
    def supported_kv_cache_layouts(cls):
        return (KVCacheLayout.LBHNC,)

    @classmethod
    def supports_sliding_window(cls):
        return True

    @classmethod
    def supports_sink(cls):
        return True


class Builder(AttentionMetadataBuilder):
    """Makes a Step of each of vLLM's batches; has the ExternalPools, which outlive the steps."""

    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        parallel = vllm_config.parallel_config
        if parallel.decode_context_parallel_size > 1 and not kv_cache_spec.dcp_sharded:
            raise kvmesh.Unsupported(f"layers that each rank holds whole: {layer_names[0]}")
        self.interleave = parallel.cp_kv_cache_interleave_size
        self.pools = {}

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        return Step(self, common_attn_metadata)

    def pool_of(self, kv_cache, q_heads):
        """Returns the ExternalPool for layers whose tensors have the form of `kv_cache`."""
        form = (kv_cache.shape, kv_cache.stride(), kv_cache.dtype, q_heads)
        if form not in self.pools:
            mesh = mesh_of(get_dcp_group(), threads=torch.get_num_threads())
            self.pools[form] = kvmesh.ExternalPool(mesh, side_by_side(kv_cache), q_heads=q_heads,
                                                   interleave=self.interleave)
        return self.pools[form]


class Step:
    """A batch of vLLM, with a plan for each kind of layers, made when the first of them runs."""

    def __init__(self, builder, batch):
        self.builder = builder
        self.tokens = batch.num_actual_tokens
        self.starts = batch.query_start_loc_cpu
        # On a GPU they stay there until a plan reads them, as int32.
        self.lengths = batch.seq_lens.int()
        self.table = batch.block_table_tensor.int().contiguous()
        if not isinstance(batch.causal, bool):
            raise kvmesh.Unsupported("causal for some of the requests alone")
        self.causal = batch.causal
        self.plans = {}

    def plan_for(self, impl, kv_cache):
        key = (impl.kind, kv_cache.shape, kv_cache.stride())
        if key not in self.plans:
            pool = self.builder.pool_of(kv_cache, impl.num_heads * impl.dcp_world_size)
            self.plans[key] = pool.plan(
                self.starts, self.lengths, self.table, appended=self.starts.diff(),
                mask=impl.mask(self.causal), score=impl.score, scale=impl.scale, scatter="heads")
        return self.plans[key]


class Impl(AttentionImpl):
    """The attention of one of the model's layers."""

    # vLLM requires both for decode context parallelism. The lse stays within kvmesh.
    can_return_lse_for_decode = True
    supports_dcp = True

    def __init__(self, num_heads, head_size, scale, num_kv_heads=None, alibi_slopes=None,
                 sliding_window=None, kv_cache_dtype="auto", logits_soft_cap=None,
                 attn_type=AttentionType.DECODER, kv_sharing_target_layer_name=None, sinks=None):
        if attn_type != AttentionType.DECODER:
            raise kvmesh.Unsupported(f"attention of the type {attn_type}")
        self.num_heads = num_heads
        self.scale = float(scale)
        self.kv_cache_dtype = kv_cache_dtype
        self.window = sliding_window
        self.writes = kv_sharing_target_layer_name is None
        self.sinks = None if sinks is None else self.of_all_heads(sinks.float())
        slopes = None if alibi_slopes is None else self.of_all_heads(torch.tensor(alibi_slopes))
        self.score = score_of(logits_soft_cap, slopes)
        self.kind = (sliding_window, logits_soft_cap, slopes is not None and tuple(slopes.tolist()))
        self.pages = None  # (vLLM's tensor, the same as a kvmesh.Pool)

    def of_all_heads(self, values, dim=0):
        """Returns `values` of all heads of the group, which has the keys of all of them; given those
        of this rank's heads along `dim`. Collective in the group."""
        if self.dcp_world_size == 1:
            return values
        return get_dcp_group().all_gather(values.contiguous(), dim=dim)

    def mask(self, causal):
        if causal:
            return kvmesh.sliding_window(self.window) if self.window else kvmesh.causal()
        if self.window:
            raise kvmesh.Unsupported("a window that is not causal")
        return kvmesh.no_mask()

    def pages_of(self, kv_cache):
        if self.pages is None or self.pages[0] is not kv_cache:
            self.pages = (kv_cache, side_by_side(kv_cache))
        return self.pages[1]

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output, output_scale=None,
                output_block_scale=None):
        if output_scale is not None or output_block_scale is not None:
            raise kvmesh.Unsupported("quantized outputs")
        if attn_metadata is None:  # a run that measures memory
            return output
        n = attn_metadata.tokens
        new = (key[:n], value[:n]) if self.writes else (None, None)
        attn_metadata.plan_for(self, kv_cache).run(
            self.pages_of(kv_cache), self.of_all_heads(query[:n], dim=1), *new, out=output[:n],
            sinks=self.sinks)
        return output


def side_by_side(kv_cache):
    """Returns vLLM's tensor of a layer, [blocks, heads, block_size, 2 dim], as a Pool."""
    dim = kv_cache.shape[-1] // 2
    return kvmesh.Pool(kv_cache[..., :dim], kv_cache[..., dim:])


def score_of(soft_cap, slopes):
    """Returns the score mod of a soft cap and of ALiBi's slopes [heads]; None if there is neither."""
    if slopes is None:
        return kvmesh.soft_cap(soft_cap) if soft_cap else None
    slopes = kvmesh.Buffer(slopes)

    def score(score, b, h, q, kv):
        if soft_cap:
            score = soft_cap * kvmesh.tanh(score / soft_cap)
        return score + slopes[h] * (kv - q)

    return kvmesh.ScoreMod(score)
