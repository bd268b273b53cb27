"""Losses that leave ignored pixels out, in value and in gradient.

Dice, Tversky and focal are MONAI's: ignored pixels have probability and target 0 before Dice and Tversky see them, and
take no part in the mean of the focal loss. Cross-entropies are PyTorch's, with weights for borders between objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import LossSettings
from pipeline.targets import CLASS, VECTORS

Kind = Literal["sigmoid", "softmax"]

SMOOTHING = 1.0
"""Pixels added above and below the fraction of Dice and Tversky, so that a class that is nowhere costs little."""
REGRESSED = ("distance", *VECTORS)
"""Channels whose target is a quantity in [0, 1], not a yes or no."""

Term = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""logits and target (N, C, H, W), valid (N, 1, H, W), pixel weights (N, 1, H, W), all float32, to a scalar."""


class SegmentationLoss(nn.Module):
    """A weighted sum of terms, each a mean over the pixels that count (and the channels).

    kind sigmoid: each channel stands alone; kind softmax: the channels of a pixel sum to 1, the first is background.
    Dice and Tversky are taken over the batch as a whole and for each channel, without the background. Channels
    that are quantities (REGRESSED) are trained by binary cross-entropy with their value as soft target, which is least
    where the probability equals it and has a gradient everywhere; it is added, with weight 1, whatever the weights of
    the others. Of objects of several classes (channels that begin with CLASS, of kind sigmoid) each class is trained by
    the same on foreground alone, since background has no class; it is added with weight 1 too.
    """

    def __init__(self, settings: LossSettings, kind: Kind, channels: Sequence[str]) -> None:
        super().__init__()
        self.kind = kind
        self.channels = tuple(channels)
        self.boundary_weight = settings.boundary_weight
        names = [name for name in TERMS if getattr(settings, name) > 0]
        self.term_weights = {name: getattr(settings, name) for name in names}
        self.summands = {name: TERMS[name](settings, kind) for name in names}
        self.classes = [
            place for place, name in enumerate(self.channels) if kind == "sigmoid" and name.startswith(CLASS)
        ]
        self.classified = [
            place for place, name in enumerate(self.channels) if name not in REGRESSED and place not in self.classes
        ]
        self.regressed = [place for place, name in enumerate(self.channels) if name in REGRESSED]

    def forward(self, logits: Tensor, target: Tensor, valid: Tensor, weight: Tensor | None = None) -> Tensor:
        """Weighted sum of the terms, float32 under autocast too.

        logits: (N, C, H, W), of volumes with the planes before H, as all others. target: (N, C, H, W) in [0, 1] for
        sigmoid, (N, 1, H, W) class ids for softmax; any value where ignored. valid: (N, H, W) bool, False where
        ignored. weight: (N, H, W) float in [0, 1] from targets.border_weights, or None; a pixel's cross-entropy counts
        1 + boundary_weight * weight.
        """
        terms = self.terms(logits, target, valid, weight)
        return torch.stack([self.term_weights.get(name, 1.0) * term for name, term in terms.items()]).sum()

    def terms(self, logits: Tensor, target: Tensor, valid: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """Each term by name, before its weight; arguments as for forward."""
        with torch.autocast(logits.device.type, enabled=False):
            counted = valid.bool().unsqueeze(1)
            # where, not multiplication: neither NaN nor infinity of an ignored pixel comes through, nor goes back.
            logits = torch.where(counted, logits.float(), 0.0)
            expected = self._expected(target, counted)
            mask = counted.float()
            pixel_weight = mask if weight is None else mask * (1 + self.boundary_weight * weight.float().unsqueeze(1))
            found = {
                name: term(logits[:, self.classified], expected[:, self.classified], mask, pixel_weight)
                for name, term in self.summands.items()
            }
            inside = mask * expected[:, :1]
            if self.regressed:
                counting = inside if self.channels[self.regressed[0]] in VECTORS else mask
                found["quantities"] = _soft_cross_entropy(logits, expected, self.regressed, counting)
            if self.classes:
                found["classes"] = _soft_cross_entropy(logits, expected, self.classes, inside)
            return found

    def _expected(self, target: Tensor, counted: Tensor) -> Tensor:
        if self.kind == "softmax":
            ids = torch.arange(len(self.channels), device=target.device).view(1, -1, *[1] * (target.ndim - 2))
            return ((target == ids) & counted).float()
        return torch.where(counted, target.float(), 0.0)


def _soft_cross_entropy(logits: Tensor, expected: Tensor, channels: Sequence[int], counting: Tensor) -> Tensor:
    values = F.binary_cross_entropy_with_logits(logits[:, channels], expected[:, channels], reduction="none")
    return _mean(values, counting, counting)


def _mean(values: Tensor, pixel_weight: Tensor, mask: Tensor) -> Tensor:
    """Mean over the pixels that count; 0, with a gradient of 0, where none does."""
    return (values * pixel_weight).sum() / (mask.sum() * values.shape[1]).clamp(min=1.0)


def _probabilities(logits: Tensor, kind: Kind) -> Tensor:
    return logits.softmax(dim=1) if kind == "softmax" else logits.sigmoid()


def _foreground(planes: Tensor, kind: Kind) -> Tensor:
    return planes[:, 1:] if kind == "softmax" else planes


def _cross_entropy(settings: LossSettings, kind: Kind) -> Term:
    def sigmoid(logits: Tensor, target: Tensor, mask: Tensor, pixel_weight: Tensor) -> Tensor:
        return _mean(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), pixel_weight, mask)

    def softmax(logits: Tensor, target: Tensor, mask: Tensor, pixel_weight: Tensor) -> Tensor:
        values = F.cross_entropy(logits, target, reduction="none").unsqueeze(1)
        return _mean(values, pixel_weight, mask)

    return softmax if kind == "softmax" else sigmoid


def _dice(settings: LossSettings, kind: Kind) -> Term:
    from monai.losses import DiceLoss

    loss = DiceLoss(batch=True, smooth_nr=SMOOTHING, smooth_dr=SMOOTHING)
    return _overlap_term(loss, kind)


def _tversky(settings: LossSettings, kind: Kind) -> Term:
    from monai.losses import TverskyLoss

    alpha = settings.tversky_alpha
    loss = TverskyLoss(batch=True, alpha=alpha, beta=1 - alpha, smooth_nr=SMOOTHING, smooth_dr=SMOOTHING)
    return _overlap_term(loss, kind)


def _overlap_term(loss: Callable[[Tensor, Tensor], Tensor], kind: Kind) -> Term:
    def term(logits: Tensor, target: Tensor, mask: Tensor, pixel_weight: Tensor) -> Tensor:
        return loss(_foreground(_probabilities(logits, kind), kind) * mask, _foreground(target, kind))

    return term


def _focal(settings: LossSettings, kind: Kind) -> Term:
    from monai.losses import FocalLoss

    loss = FocalLoss(gamma=settings.focal_gamma, use_softmax=kind == "softmax", reduction="none")

    def term(logits: Tensor, target: Tensor, mask: Tensor, pixel_weight: Tensor) -> Tensor:
        values = loss(logits, target)
        # A pixel of a softmax has one class: its focal loss is the sum over channels, not their mean.
        return _mean(values.sum(dim=1, keepdim=True) if kind == "softmax" else values, mask, mask)

    return term


TERMS: dict[str, Callable[[LossSettings, Kind], Term]] = {
    "cross_entropy": _cross_entropy,
    "dice": _dice,
    "focal": _focal,
    "tversky": _tversky,
}


def build_loss(settings: LossSettings, kind: Kind, channels: Sequence[str]) -> SegmentationLoss:
    """Build the sum of the losses whose weight is not 0; channels: as targets.channels_of names them.

    Raises ValueError for a softmax over fewer than two channels.
    """
    if kind == "softmax" and len(channels) < 2:
        raise ValueError(
            f"train.loss: expected at least background and one class for softmax, found {list(channels)}; "
            f"use train.target=binary"
        )
    return SegmentationLoss(settings, kind, channels)
