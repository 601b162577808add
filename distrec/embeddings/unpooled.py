"""Unpooled lookups of replicated tables on CPU, for which FBGEMM has no kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import DenseTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.distributed.batched_embedding_kernel import BatchedDenseEmbedding


class UnpooledRows(nn.Module):
    """In place of FBGEMM's kernel of replicated tables: the same weights, looked up one row an id."""

    first: Tensor  # (T,), of each feature: the first row of its table, among those of all tables on end

    def __init__(self, kernel: DenseTableBatchedEmbeddingBagsCodegen):
        """Take over the kernel's weights, which lie on end; all tables of a collection without pooling have one dim."""
        super().__init__()
        self.weights = kernel.weights
        self.split_embedding_weights = kernel.split_embedding_weights
        self.register_buffer("first", kernel.hash_size_cumsum[:-1], persistent=False)
        self._dim = kernel.max_D
        self._dtype = SparseType.from_int(kernel.output_dtype).as_dtype()

    def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
        """Rows (N, D) of ids (N,), feature by feature; `offsets` (T * B + 1,) of each feature's B rows."""
        features = len(self.first)
        counts = offsets.diff().view(features, (len(offsets) - 1) // features).sum(dim=1)
        rows = indices + torch.repeat_interleave(self.first, counts)
        return F.embedding(rows, self.weights.view(-1, self._dim)).to(self._dtype)


def look_up_unpooled(modules: Iterable[nn.Module]) -> None:
    """Give the replicated tables without pooling among a sharded model's lookups what works on CPU."""
    replicated: list[Any] = [module for module in modules if isinstance(module, BatchedDenseEmbedding)]
    for module in replicated:
        if module.emb_module.use_cpu and module.emb_module.pooling_mode is PoolingMode.NONE:
            module._emb_module = UnpooledRows(module.emb_module)
