"""The rivals of kvmesh. Each imports its package when it is made, so that a missing package does not
affect the others. `prepare` returns a function that runs one replica and returns the output [tokens,
q_heads, v_dim], or None if the rival has no kernel for the row. Latent rows are for rivals with
`latent = True`, other rows for the rest."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

BF16 = torch.bfloat16
WORKSPACE_BYTES = 512 << 20


class FlashInferDecode:
    """FlashInfer's decode by tensor cores, of one query. With more (`q_len_per_req`) its kernel ends with an illegal
    address in 0.7.2.post1, which ends the program: FlashInferPrefill has these rows."""

    name = "FlashInfer decode"
    package = "flashinfer"

    def __init__(self):
        import flashinfer

        self.wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper
        self.workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")

    def prepare(self, case):
        row = case.row
        if row.op != "decode" or row.queries > 1:
            return None
        wrapper = self.wrapper(self.workspace, "HND", use_tensor_cores=True)
        wrapper.plan(case.ints(case.page_indptr()), case.ints(case.page_indices()), case.ints(case.last_page_lengths()),
                     row.q_heads, row.kv_heads, row.dim, row.page, q_data_type=BF16, kv_data_type=BF16)
        return lambda replica: wrapper.run(case.q, case.replicas[replica], out=case.out)


class FlashInferPrefill:
    """FlashInfer's paged prefill: for prefill, and for decodes of several queries."""

    package = "flashinfer"

    def __init__(self, backend):
        import flashinfer

        self.backend = backend
        self.name = f"FlashInfer prefill {backend}"
        self.wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper
        self.workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")

    def prepare(self, case):
        row = case.row
        if row.op == "decode" and row.queries == 1:
            return None
        wrapper = self.wrapper(self.workspace, "HND", backend=self.backend)
        q_indptr = [i * row.queries for i in range(row.batch + 1)]
        wrapper.plan(case.ints(q_indptr), case.ints(case.page_indptr()), case.ints(case.page_indices()),
                     case.ints(case.last_page_lengths()), row.q_heads, row.kv_heads, row.dim, row.page, causal=True,
                     q_data_type=BF16, kv_data_type=BF16)
        return lambda replica: wrapper.run(case.q, case.replicas[replica], out=case.out)


class Cudnn:
    """torch's scaled_dot_product_attention by cuDNN, on contiguous keys and values, without pages."""

    name = "cuDNN (torch, contiguous)"
    package = "torch"

    def prepare(self, case):
        row = case.row
        if row.op != "prefill" or row.lengths != "even":
            return None
        planes = zip(*(case.contiguous(sequence) for sequence in range(row.batch)))
        k, v = (torch.stack(plane) for plane in planes)  # [batch, kv_heads, context, dim]
        q = case.q.view(row.batch, row.queries, row.q_heads, row.dim).transpose(1, 2)
        mask = self.mask_of(row, "cuda")

        def run(_, k=k, v=v):
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                out = torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=k.shape[1] != row.q_heads)
            return out.transpose(1, 2).flatten(0, 1)

        try:
            run(0)
        except RuntimeError:  # no grouped heads here: every query head gets a copy of its own
            k, v = (plane.repeat_interleave(row.q_heads // row.kv_heads, 1) for plane in (k, v))
            return lambda replica: run(replica, k, v)
        return run

    @staticmethod
    def mask_of(row, device):
        """The mask of a chunk, whose queries are the newest; whole sequences are causal without one. It is
        additive, as cuDNN needs it: torch would convert a mask of booleans in every call."""
        if row.queries == row.context:
            return None
        seen = torch.ones((row.queries, row.context), dtype=torch.bool, device=device)
        seen = seen.tril(row.context - row.queries)
        return torch.zeros_like(seen, dtype=BF16).masked_fill_(~seen, float("-inf"))[None, None]


class FlashAttention3:
    """FA3's decode and prefill over a page table; its pages are [page, kv_heads, dim]."""

    name = "FA3"
    package = "flash_attn_interface"

    def __init__(self):
        import flash_attn_interface

        self.attention = flash_attn_interface.flash_attn_with_kvcache

    def prepare(self, case):
        row = case.row
        replicas = [[plane.transpose(1, 2).contiguous() for plane in replica] for replica in case.replicas]
        q = case.q.view(row.batch, row.queries, row.q_heads, row.dim)
        lengths, table = case.ints(case.lengths), case.ints(case.page_table())

        def run(replica):
            out = self.attention(q, *replicas[replica], cache_seqlens=lengths, page_table=table, causal=True)
            return (out[0] if isinstance(out, tuple) else out).flatten(0, 1)

        return run


class FlashInferMla:
    """FlashInfer's latent attention by FlashAttention-3; several queries of a sequence are causal."""

    name = "FlashInfer MLA fa3"
    package = "flashinfer"
    latent = True

    def __init__(self):
        import flashinfer.mla

        self.wrapper = flashinfer.mla.BatchMLAPagedAttentionWrapper
        self.workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")

    def prepare(self, case):
        row = case.row
        wrapper = self.wrapper(self.workspace, backend="fa3")
        q_indptr = [i * row.queries for i in range(row.batch + 1)]
        wrapper.plan(case.ints(q_indptr), case.ints(case.page_indptr()), case.ints(case.page_indices()),
                     case.ints(case.lengths), row.q_heads, row.v_dim, row.dim - row.v_dim, row.page, row.queries > 1,
                     case.scale, BF16, BF16)
        q = [part.contiguous() for part in case.q.split((row.v_dim, row.dim - row.v_dim), -1)]

        def run(replica):
            keys = case.replicas[replica][0][:, 0]
            return wrapper.run(*q, keys[..., :row.v_dim], keys[..., row.v_dim:], out=case.out)

        return run


class FlashMla:
    """Latent attention over pages of 64."""

    name = "FlashMLA"
    package = "flash_mla"
    latent = True

    def __init__(self):
        import flash_mla

        self.module = flash_mla

    def prepare(self, case):
        row = case.row
        if row.page != 64:
            return None
        lengths, table = case.ints(case.lengths), case.ints(case.page_table())
        plan = self.module.get_mla_metadata(lengths, row.queries * row.q_heads // row.kv_heads, row.kv_heads)
        q = case.q.view(row.batch, row.queries, row.q_heads, row.dim)

        def run(replica):
            keys = case.replicas[replica][0].transpose(1, 2)
            out, _ = self.module.flash_mla_with_kvcache(q, keys, table, lengths, row.v_dim, *plan,
                                                        softmax_scale=case.scale, causal=True)
            return out.flatten(0, 1)

        return run


MAKERS = {
    "flashinfer": [FlashInferDecode, lambda: FlashInferPrefill("fa2"), lambda: FlashInferPrefill("fa3"),
                   FlashInferMla],
    "torch": [Cudnn],
    "flash_attn_interface": [FlashAttention3],
    "flash_mla": [FlashMla],
}


def make_all():
    """The rivals that can be imported, and for the others {package: reason}."""
    rivals, absent = [], {}
    for package, makers in MAKERS.items():
        try:
            rivals += [make() for make in makers]
        except ImportError as error:
            absent[package] = f"not installed ({error})"
        except Exception as error:  # an import that fails in another way
            absent[package] = f"{type(error).__name__}: {error}"
    return rivals, absent
