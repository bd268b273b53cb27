"""What takes part in a training: networks, each with an optimiser of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

NETWORK = "network"
"""The player that is averaged, validated and kept."""


@dataclass(frozen=True)
class Player:
    """A network with an optimiser (AdamW) of its own; learning_rate is the peak of the schedule that all share."""

    module: nn.Module
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
