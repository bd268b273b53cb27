"""What processes that train together take of their whole batch: its loss, and statistics of batch norms."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
from torch import nn

from pipeline.config import LossSettings
from pipeline.losses import build_loss
from pipeline.whole_batch import share_statistics, whole_batch

CHANNELS = 3


def network(normalisation: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), normalisation, nn.ReLU(), nn.Conv2d(8, CHANNELS, 1))


def batch() -> tuple[torch.Tensor, ...]:
    """Images, targets with an empty half, and what is known of them."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand((8, 3, 16, 16), generator=generator)
    targets = (torch.rand((8, CHANNELS, 16, 16), generator=generator) > 0.7).float()
    targets[:3] = 0
    valid = (torch.rand((8, CHANNELS, 16, 16), generator=generator) > 0.1).float()
    valid[5] = 0
    return images, targets, valid


def gradients(normalisation: nn.Module, rows: slice) -> tuple[torch.Tensor, nn.Module]:
    """Gradients of the default loss of the whole batch, of which this process has some rows."""
    images, targets, valid = batch()
    own = network(normalisation)
    loss = build_loss(LossSettings(), "sigmoid", ("foreground", "down", "right"))
    logits = whole_batch(own(images[rows] * 2))
    loss(logits, whole_batch(targets[rows]), whole_batch(valid[rows]), None).backward()
    return torch.cat([parameter.grad.flatten() for parameter in own.parameters() if parameter.grad is not None]), own


def one_of_two(rank: int, folder: str) -> None:
    """Write what one process finds; averaged over both, as training does, it is to be that of one process."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows = slice(4 * rank, 4 * rank + 4)
    found, _ = gradients(nn.GroupNorm(2, 8), rows)
    torch.distributed.all_reduce(found)
    _, normalised = gradients(nn.BatchNorm2d(8), rows)
    own = {name: values.clone() for name, values in normalised.named_buffers()}
    share_statistics([normalised])
    shared = dict(normalised.named_buffers())
    torch.save({"gradients": found / 2, "own": own, "shared": shared}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_take_the_loss_and_the_statistics_of_both(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone, _ = gradients(nn.GroupNorm(2, 8), slice(None))
    for found in (first, second):
        torch.testing.assert_close(found["gradients"], alone, rtol=1e-4, atol=1e-7)
    for name in ("1.running_mean", "1.running_var"):
        assert not torch.equal(first["own"][name], second["own"][name])
        assert torch.equal(first["shared"][name], second["shared"][name])
        torch.testing.assert_close(first["shared"][name], (first["own"][name] + second["own"][name]) / 2)
    assert first["shared"]["1.num_batches_tracked"] == 1


def test_one_process_has_the_whole_batch() -> None:
    share = torch.rand(2, 3)
    assert whole_batch(share) is share
    normalised = nn.BatchNorm2d(3)
    before = {name: values.clone() for name, values in normalised.state_dict().items()}
    share_statistics([normalised])
    assert all(torch.equal(before[name], values) for name, values in normalised.state_dict().items())
