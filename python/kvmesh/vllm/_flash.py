"""vLLM's FlashAttention for GPUs; kvmesh combines the partials of decode context parallelism."""

from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend, FlashAttentionImpl

from ._combine import combine_heads


class Backend(FlashAttentionBackend):
    @staticmethod
    def get_name():
        return "CUSTOM"

    @staticmethod
    def get_impl_cls():
        return Impl


class Impl(FlashAttentionImpl):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.dcp_combine = combine_heads
