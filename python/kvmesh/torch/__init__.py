"""kvmesh for programs written in torch.

PagedAttention: PyTorch's class, on any number of ranks. Step: the steps of a KvCache as operators
for torch.compile.
"""

from ._step import Step
from .paged_attention import PagedAttention

__all__ = ["PagedAttention", "Step"]
