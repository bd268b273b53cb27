"""Losses of images against images: of pixels, of structure, of sparse and of variational codes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import KIND_SETTINGS, ReconstructionSettings
from pipeline.networks.autoencoders import Code, activation_of
from pipeline.whole_batch import whole_batch

CYCLES = 4
"""How often beta rises in a training, where it cycles (Fu 2019, arXiv:1903.10145)."""
WINDOW = 11
"""Side of the window of SSIM in pixels."""
LEAST_SHARE = 1e-6
"""Mean activations are kept so far from 0 and 1 before a logarithm."""


class ReconstructionLoss(nn.Module):
    """Distance between output and target, and what the code of a sparse or variational autoencoder pays.

    kind: that of the autoencoder (linear, convolutional, denoising, sparse, variational), or any other name for a
    network without a code (unet).

    A mean over the N x C x H x W values, plus settings.ssim * (1 - SSIM), plus settings.sparsity_weight * penalty.
    variational: Kingma and Welling's sum over the values of an image plus beta * KL, averaged over the batch, all
    divided by the C * H * W values of an image. That constant factor keeps learning rates comparable with the other
    kinds; it does not change what is best. So beta weighs nats against errors summed over the whole image, and SSIM is
    weighed against the mean error.

    Raises ValueError naming every setting that would have no effect, or that the kind cannot be trained with.
    """

    def __init__(self, settings: ReconstructionSettings, kind: str) -> None:
        super().__init__()
        _check(settings, kind)
        self.settings, self.kind = settings, kind
        self.activation = activation_of(kind)
        self.distance = DISTANCES[settings.loss]
        if settings.ssim:
            from monai.losses import SSIMLoss

            self.structure = SSIMLoss(spatial_dims=2, data_range=1.0, win_size=WINDOW, kernel_sigma=1.5)

    def forward(self, logits: Tensor, target: Tensor, code: Code | None, progress: float) -> Tensor:
        """Weighted sum of the terms, float32 under autocast too.

        logits: (N, C, H, W) as the network gives them. target: (N, C, H, W) in [0, 1]. code: of an autoencoder, else
        None. progress: share of the training that is over, in [0, 1].
        """
        weights = self.weights(progress)
        terms = self.terms(logits, target, code)
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum()

    def weights(self, progress: float) -> dict[str, float]:
        """Weight of each term at a share of the training."""
        settings = self.settings
        return {
            settings.loss: 1.0,
            "ssim": settings.ssim,
            "sparsity": settings.sparsity_weight,
            "divergence": beta_at(settings, progress),
        }

    def terms(self, logits: Tensor, target: Tensor, code: Code | None) -> dict[str, Tensor]:
        """Each term by name, before its weight; arguments as for forward.

        The distance under its own name (squared, absolute, ...); ssim: 1 - SSIM; sparsity; divergence: nats an image,
        divided by the C * H * W values of an image.
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits, target = logits.float(), target.float()
            terms: dict[str, Tensor] = {self.settings.loss: self.distance(logits, target, self.activation)}
            if self.settings.ssim:
                if min(target.shape[-2:]) < WINDOW:
                    raise ValueError(
                        f"train.reconstruction.ssim: expected images of at least {WINDOW}x{WINDOW} pixels, found "
                        f"{target.shape[-2]}x{target.shape[-1]}; use larger crops (augment.crop), or ssim=0"
                    )
                terms["ssim"] = self.structure(output_image(logits, self.activation), target)
            if self.kind == "sparse":
                assert code is not None
                terms["sparsity"] = SPARSITY[self.settings.sparsity](whole_batch(code.values.float()), self.settings)
            elif self.kind == "variational":
                assert code is not None and code.mean is not None and code.log_variance is not None
                divergence = divergence_from_standard_normal(code.mean.float(), code.log_variance.float())
                terms["divergence"] = divergence.mean() / target[0].numel()
            return terms


def _check(settings: ReconstructionSettings, kind: str) -> None:
    fields = ReconstructionSettings.model_fields
    idle = {
        owner: [name for name in names if getattr(settings, name) != fields[name].default]
        for owner, names in KIND_SETTINGS.items()
        if owner != kind
    }
    problems = [
        f"{', '.join(names)} belong to autoencoder:{owner} and would have no effect with {kind}; leave them out"
        for owner, names in idle.items()
        if names
    ]
    if kind == "sparse" and settings.sparsity == "none":
        problems.append("sparsity: expected threshold, mean or divergence for autoencoder:sparse, found none")
    if activation_of(kind) == "identity" and settings.loss not in ("squared", "absolute"):
        problems.append(
            f"loss: expected squared or absolute for autoencoder:{kind}, whose output is no probability, found "
            f"{settings.loss}"
        )
    if problems:
        raise ValueError("\n".join(f"train.reconstruction: {problem}" for problem in problems))


def output_image(logits: Tensor, activation: str) -> Tensor:
    """The image that logits stand for; a linear one is not clamped, which would stop its gradient."""
    return logits if activation == "identity" else logits.sigmoid()


def _squared(logits: Tensor, target: Tensor, activation: str) -> Tensor:
    return F.mse_loss(output_image(logits, activation), target)


def _absolute(logits: Tensor, target: Tensor, activation: str) -> Tensor:
    return F.l1_loss(output_image(logits, activation), target)


def _cross_entropy(logits: Tensor, target: Tensor, activation: str) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target)


def _kullback_leibler(logits: Tensor, target: Tensor, activation: str) -> Tensor:
    """Divergence of the output from the target, each value a Bernoulli probability: cross-entropy less entropy."""
    entropy = torch.special.entr(target) + torch.special.entr(1 - target)
    return F.binary_cross_entropy_with_logits(logits, target) - entropy.mean()


DISTANCES: dict[str, Callable[[Tensor, Tensor, str], Tensor]] = {
    "squared": _squared,
    "absolute": _absolute,
    "cross_entropy": _cross_entropy,
    "kullback_leibler": _kullback_leibler,
}


def _threshold(values: Tensor, settings: ReconstructionSettings) -> Tensor:
    """Sum of the activations above alpha, divided by the number of units: the weight means the same at every size."""
    return torch.where(values > settings.sparsity_threshold, values, 0.0).mean()


def _mean(values: Tensor, settings: ReconstructionSettings) -> Tensor:
    """Squared distance from p of a channel's mean over batch and places; mean over the channels."""
    return (_channel_means(values) - settings.sparsity_target).square().mean()


def _divergence(values: Tensor, settings: ReconstructionSettings) -> Tensor:
    """KL(p || mean activation) of a channel over batch and places, as of Bernoulli shares; mean over the channels."""
    wanted = values.new_tensor(settings.sparsity_target)
    found = _channel_means(values).clamp(LEAST_SHARE, 1 - LEAST_SHARE)
    return (wanted * torch.log(wanted / found) + (1 - wanted) * torch.log((1 - wanted) / (1 - found))).mean()


def _channel_means(values: Tensor) -> Tensor:
    return values.mean(dim=(0, 2, 3))


SPARSITY: dict[str, Callable[[Tensor, ReconstructionSettings], Tensor]] = {
    "threshold": _threshold,
    "mean": _mean,
    "divergence": _divergence,
}


def divergence_from_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) of each sample in nats, summed over its latents and places.

    (N, ...) and (N, ...) to (N,): -1/2 sum_j (1 + log sigma_j^2 - sigma_j^2 - mu_j^2) (Kingma and Welling 2013,
    arXiv:1312.6114, appendix B).
    """
    return -0.5 * (1 + log_variance - log_variance.exp() - mean.square()).flatten(start_dim=1).sum(dim=1)


def beta_at(settings: ReconstructionSettings, progress: float) -> float:
    """Weight of the divergence at a share of the training in [0, 1], by settings.beta_schedule.

    constant: beta; rise: from 0 along a line over the first share beta_rise; cycle: the same in each of CYCLES equal
    parts. The last step has the whole of beta, whatever the schedule.
    """
    if settings.beta_schedule == "constant" or progress >= 1:
        return settings.beta
    phase = progress * CYCLES % 1 if settings.beta_schedule == "cycle" else progress
    return settings.beta * min(1.0, phase / settings.beta_rise)
