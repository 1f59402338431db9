"""kvmesh for programs written in torch.

PagedAttention: PyTorch's class, on any number of ranks. Step: the steps of a KvCache as operators
that torch.compile knows.
"""

from ._step import Step
from .paged_attention import PagedAttention

__all__ = ["PagedAttention", "Step"]
