"""One batch over all processes that train together: what is no mean over images is taken of all of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor, nn


def whole_batch(share: Tensor) -> Tensor:
    """Join the shares (n, ...) of all processes to the batch (N, ...), with its gradient; alone, the share itself.

    A loss that is no mean over images, as the Dice of a batch, is then that of one process: each takes the same loss of
    the whole batch, the gradient of a share arrives once from each, and the mean over processes, which training takes,
    is the gradient of the whole. Every process must have as many rows.
    """
    return cast(Tensor, _Joined.apply(share)) if _many() else share


class _Joined(torch.autograd.Function):
    """All shares one after the other; a share's gradient is the sum of those that the processes have for it."""

    @staticmethod
    def forward(context: Any, share: Tensor) -> Tensor:
        context.rows = len(share)
        shares = [torch.empty_like(share) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(shares, share.contiguous())
        return torch.cat(shares)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        whole = gradient.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(whole)
        return whole.split(context.rows)[torch.distributed.get_rank()]


def share_statistics(networks: Iterable[nn.Module]) -> None:
    """Set running statistics, those of batch norms, to their mean over all processes, so that all have the same."""
    if not _many():
        return
    statistics = [buffer for network in networks for buffer in network.buffers() if buffer.is_floating_point()]
    if not statistics:
        return
    mean = torch.cat([one.flatten() for one in statistics])
    torch.distributed.all_reduce(mean)
    mean /= torch.distributed.get_world_size()
    for one, values in zip(statistics, mean.split([one.numel() for one in statistics]), strict=True):
        one.copy_(values.view_as(one))


def _many() -> bool:
    return torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
