"""How TorchRec shards the two collections, and the types in which it sends vectors and gradients between ranks."""

from __future__ import annotations

from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import ShardingType
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.types import ModuleSharder, QuantizedCommCodecs

from distrec.config.schema import Comms

BAG_TYPES = ("data_parallel", "table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise", "grid_shard")
SEQUENCE_TYPES = ("data_parallel", "table_wise", "row_wise", "column_wise")


class AnyDeviceBagSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder with every sharding type on every device: gloo has the collectives that row-wise needs."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """All of them."""
        return [kind.value for kind in ShardingType if kind.value in BAG_TYPES]


def sharders(comms: Comms | None = None, device: str = "cpu", prefetch: bool = False) -> list[ModuleSharder]:
    """The sharders of the two collections.

    Args:
        comms: types on the way between ranks; default: as they are.
        device: cpu (gloo, which TorchRec gives no bf16: `distrec.config.check` refuses it) or cuda.
        prefetch: whether the train pipeline fetches rows into the caches a step ahead, which the kernels must know.
    """
    codecs = _codecs(comms or Comms(), device)
    fused: dict[str, Any] = {"bounds_check_mode": BoundsCheckMode.NONE}  # the reader has checked every id, and can name it
    if prefetch:
        fused["prefetch_pipeline"] = True
    return [
        AnyDeviceBagSharder(fused_params=fused, qcomm_codecs_registry=codecs),
        EmbeddingCollectionSharder(fused_params=fused, qcomm_codecs_registry=codecs),
    ]  # type: ignore[return-value]


def _codecs(comms: Comms, device: str) -> dict[str, QuantizedCommCodecs] | None:
    """By collective; None when nothing is converted."""
    config = QCommsConfig(forward_precision=CommType(comms.forward), backward_precision=CommType(comms.backward))
    return get_qcomm_codecs_registry(config, device=torch.device(device))
