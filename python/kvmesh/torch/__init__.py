"""kvmesh for programs written in torch: PyTorch's PagedAttention, on any number of ranks.

    from kvmesh.torch import PagedAttention
"""

from .paged_attention import PagedAttention

__all__ = ["PagedAttention"]
