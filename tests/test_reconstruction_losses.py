"""Losses of images: values by hand, parity with scikit-image and PyTorch, schedules, and settings without effect."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config import ReconstructionSettings
from pipeline.networks.autoencoders import KINDS, Code
from pipeline.reconstruction_losses import (
    DISTANCES,
    SPARSITY,
    ReconstructionLoss,
    beta_at,
    divergence_from_standard_normal,
)

OUTPUT, TARGET = [0.9, 0.6, 0.3, 0.2], [1.0, 0.5, 0.0, 0.25]


def four_values() -> tuple[Tensor, Tensor]:
    """Logits and target of one grey image of 2x2 pixels."""
    return torch.logit(torch.tensor(OUTPUT)).view(1, 1, 2, 2), torch.tensor(TARGET).view(1, 1, 2, 2)


def build(kind: str = "unet", **settings: Any) -> ReconstructionLoss:
    return ReconstructionLoss(ReconstructionSettings(**settings), kind)


def cross_entropy(output: float, target: float) -> float:
    return -target * math.log(output) - (1 - target) * math.log(1 - output)


def batch(side: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, side, side, generator=generator), torch.rand(2, 3, side, side, generator=generator)


# ---------------------------------------------------------------- pixels


def test_squared_and_absolute_of_four_values() -> None:
    errors = [output - target for output, target in zip(OUTPUT, TARGET, strict=True)]
    assert float(build(loss="squared")(*four_values(), None, 0.0)) == pytest.approx(np.mean(np.square(errors)))
    assert float(build(loss="absolute")(*four_values(), None, 0.0)) == pytest.approx(np.mean(np.abs(errors)))


def test_cross_entropy_and_divergence_of_four_values() -> None:
    expected = np.mean([cross_entropy(output, target) for output, target in zip(OUTPUT, TARGET, strict=True)])
    assert float(build(loss="cross_entropy")(*four_values(), None, 0.0)) == pytest.approx(expected)
    entropy = np.mean([0.0, cross_entropy(0.5, 0.5), 0.0, cross_entropy(0.25, 0.25)])
    assert float(build(loss="kullback_leibler")(*four_values(), None, 0.0)) == pytest.approx(expected - entropy)


def test_divergence_is_pytorch_s_over_both_outcomes() -> None:
    logits, target = batch()
    output = torch.stack([torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)])
    theirs = torch.nn.functional.kl_div(output, torch.stack([target, 1 - target]), reduction="sum") / target.numel()
    torch.testing.assert_close(build(loss="kullback_leibler")(logits, target, None, 0.0), theirs)


@pytest.mark.parametrize("name", DISTANCES)
def test_distance_is_least_at_the_target(name: Any) -> None:
    target = batch()[1].clamp(0.02, 0.98)
    loss = build(loss=name)
    at_target = float(loss(torch.logit(target), target, None, 0.0))
    if name != "cross_entropy":
        assert at_target == pytest.approx(0.0, abs=1e-6)
    for moved in (0.1, -0.1):
        assert float(loss(torch.logit(target) + moved, target, None, 0.0)) > at_target


def test_linear_output_is_compared_as_it_is() -> None:
    _, target = batch()
    assert float(build("linear", loss="squared", ssim=1.0)(target, target, None, 0.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(build("linear", loss="absolute")(target + 2.0, target, None, 0.0)) == pytest.approx(2.0)


# ---------------------------------------------------------------- structure


def test_ssim_equals_scikit_image() -> None:
    from skimage.metrics import structural_similarity

    logits, target = batch(side=40)
    logits = 3 * (target - 0.5) + logits
    output = logits.sigmoid()
    expected = [
        structural_similarity(
            made.numpy(), wanted.numpy(), data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
        for made, wanted in zip(output, target, strict=True)
    ]  # fmt: skip
    term = build(ssim=0.5).terms(logits, target, None)["ssim"]
    assert 0.1 < float(term) < 0.95
    assert float(term) == pytest.approx(1 - np.mean(expected), abs=1e-5)


def test_ssim_is_added_with_its_weight() -> None:
    logits, target = batch()
    loss = build(loss="squared", ssim=0.7)
    terms = loss.terms(logits, target, None)
    assert list(terms) == ["squared", "ssim"]
    assert float(loss(logits, target, None, 0.0)) == pytest.approx(float(terms["squared"] + 0.7 * terms["ssim"]))


def test_ssim_of_images_below_its_window_is_refused() -> None:
    logits, target = batch(side=10)
    with pytest.raises(ValueError, match=r"ssim: expected images of at least 11x11 pixels, found 10x10; use"):
        build(ssim=1.0)(logits, target, None, 0.0)


# ---------------------------------------------------------------- sparse

ACTIVATIONS = torch.tensor(
    [[[[0.05, 0.2]], [[0.9, 0.1]]], [[[0.4, 0.35]], [[0.0, 0.0]]]]
)  # 2 images, 2 units, 2 places


def sparsity(name: str, **settings: float) -> float:
    return float(SPARSITY[name](ACTIVATIONS, ReconstructionSettings(sparsity=name, **settings)))  # type: ignore[arg-type]


def test_activations_above_the_threshold_are_summed() -> None:
    assert sparsity("threshold", sparsity_threshold=0.1) == pytest.approx((0.2 + 0.9 + 0.4 + 0.35) / 8)
    assert sparsity("threshold", sparsity_threshold=0.0) == pytest.approx(float(ACTIVATIONS.mean()))
    assert sparsity("threshold", sparsity_threshold=1.0) == 0.0


def test_mean_activation_of_each_unit_is_held_against_the_target() -> None:
    assert sparsity("mean", sparsity_target=0.05) == pytest.approx((0.2**2 + 0.2**2) / 2)
    expected = 0.05 * math.log(0.05 / 0.25) + 0.95 * math.log(0.95 / 0.75)
    assert sparsity("divergence", sparsity_target=0.05) == pytest.approx(expected)
    assert sparsity("mean", sparsity_target=0.25) == pytest.approx(0.0, abs=1e-12)
    assert sparsity("divergence", sparsity_target=0.25) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", SPARSITY)
def test_penalty_is_the_same_for_more_of_the_same(name: str) -> None:
    settings = ReconstructionSettings(sparsity=name)  # type: ignore[arg-type]
    penalty = SPARSITY[name]
    torch.testing.assert_close(penalty(ACTIVATIONS.repeat(3, 2, 4, 5), settings), penalty(ACTIVATIONS, settings))


@pytest.mark.parametrize("name", SPARSITY)
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_penalty_of_saturated_units_is_finite(name: str, level: float) -> None:
    values = torch.full((1, 2, 2, 2), level, requires_grad=True)
    penalty = SPARSITY[name](values, ReconstructionSettings(sparsity=name))  # type: ignore[arg-type]
    penalty.backward()
    assert penalty.isfinite()
    assert values.grad is not None and values.grad.isfinite().all()


def test_penalty_is_added_with_its_weight() -> None:
    loss = build("sparse", loss="squared", sparsity="mean", sparsity_weight=3.0)
    logits, target = batch()
    terms = loss.terms(logits, target, Code(ACTIVATIONS))
    assert list(terms) == ["squared", "sparsity"]
    expected = float(terms["squared"]) + 3.0 * 0.04
    assert float(loss(logits, target, Code(ACTIVATIONS), 0.0)) == pytest.approx(expected)


# ---------------------------------------------------------------- variational


def test_divergence_of_known_gaussians() -> None:
    mean = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    log_variance = torch.tensor([[0.0, 0.0], [0.0, 0.0], [math.log(4.0), 0.0]])
    expected = [0.0, 0.5, -0.5 * (1 + math.log(4) - 4) + 4.5]
    assert divergence_from_standard_normal(mean, log_variance).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1.3, 0.4), (-2.0, 2.5), (0.1, 0.01)])
def test_divergence_is_the_integral(mean: float, deviation: float) -> None:
    z = np.linspace(mean - 12 * deviation, mean + 12 * deviation, 200_001)
    log_density = -0.5 * ((z - mean) / deviation) ** 2 - math.log(deviation * math.sqrt(2 * math.pi))
    log_normal = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
    integral = np.trapezoid(np.exp(log_density) * (log_density - log_normal), z)
    found = divergence_from_standard_normal(torch.tensor([[mean]]), torch.tensor([[2 * math.log(deviation)]]))
    assert float(found) == pytest.approx(integral, rel=1e-5, abs=1e-6)


def test_divergence_is_pytorch_s() -> None:
    mean, log_variance = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    normal = torch.distributions.Normal
    theirs = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(divergence_from_standard_normal(mean, log_variance), theirs.sum(dim=(1, 2, 3)))


@pytest.mark.parametrize("name", ["squared", "cross_entropy"])
def test_loss_is_kingma_s_divided_by_the_values_of_an_image(name: Any) -> None:
    logits, target = batch()
    mean, log_variance = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)
    code = Code(mean, mean, log_variance)
    if name == "squared":
        error = (logits.sigmoid() - target).square()
    else:
        error = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    divergence = -0.5 * (1 + log_variance - log_variance.exp() - mean.square())
    kingma = (error.sum(dim=(1, 2, 3)) + 0.3 * divergence.sum(dim=(1, 2, 3))).mean()
    loss = build("variational", loss=name, beta=0.3, beta_schedule="constant")
    torch.testing.assert_close(loss(logits, target, code, 0.0), kingma / (3 * 24 * 24))


def test_beta_rises_and_cycles() -> None:
    def at(schedule: Any, *shares: float) -> list[float]:
        settings = ReconstructionSettings(beta=2.0, beta_schedule=schedule, beta_rise=0.5)
        return [beta_at(settings, share) for share in shares]

    assert at("constant", 0.0, 0.5, 1.0) == [2.0, 2.0, 2.0]
    assert at("rise", 0.0, 0.25, 0.5, 0.75, 1.0) == [0.0, 1.0, 2.0, 2.0, 2.0]
    assert at("cycle", 0.0, 0.0625, 0.125, 0.2, 0.25, 0.3125, 0.75, 0.99, 1.0) == pytest.approx(
        [0.0, 1.0, 2.0, 2.0, 0.0, 1.0, 0.0, 2.0, 2.0]
    )


def test_progress_weighs_the_divergence() -> None:
    logits, target = batch()
    code = Code(torch.ones(2, 4, 3, 3), torch.ones(2, 4, 3, 3), torch.zeros(2, 4, 3, 3))
    loss = build("variational", loss="squared", beta=4.0, beta_rise=0.5)
    plain = float(loss.terms(logits, target, code)["squared"])
    nats = 0.5 * 4 * 9 / (3 * 24 * 24)
    for progress, beta in ((0.0, 0.0), (0.25, 2.0), (0.5, 4.0), (1.0, 4.0)):
        assert float(loss(logits, target, code, progress)) == pytest.approx(plain + beta * nats)


# ---------------------------------------------------------------- all


def settings_of(kind: str) -> dict[str, Any]:
    return {"ssim": 0.3} | ({"sparsity": "divergence"} if kind == "sparse" else {})


def code_of(kind: str, seed: int = 1) -> Code:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(2, 4, 3, 3, generator=generator)
    return Code(values, values, values - 0.5) if kind == "variational" else Code(values)


@pytest.mark.parametrize("kind", [*KINDS, "unet"])
def test_computed_in_float32_under_autocast(kind: str) -> None:
    logits, target = batch()
    half = logits.bfloat16()
    code = None if kind == "unet" else code_of(kind)
    loss = build(kind, **settings_of(kind))
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(half, target, code, 0.5)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(half.float(), target, code, 0.5), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in KINDS for name in DISTANCES if kind != "linear" or name in ("squared", "absolute")],
)
def test_gradients_reach_logits_and_code(kind: str, name: Any) -> None:
    logits, target = batch()
    logits.requires_grad_()
    code = Code(*(None if part is None else part.clone().requires_grad_() for part in code_of(kind)))  # type: ignore[arg-type]
    build(kind, loss=name, **settings_of(kind))(logits, target, code, 0.5).backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad.any()
    learned = {"sparse": [code.values], "variational": [code.mean, code.log_variance]}.get(kind, [])
    for part in learned:
        assert part is not None and part.grad is not None and part.grad.isfinite().all() and part.grad.all()


@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("name", DISTANCES)
def test_white_and_black_are_finite(name: Any, target: float) -> None:
    logits = torch.tensor([-200.0, 0.0, 200.0]).view(1, 1, 1, 3).requires_grad_()
    value = build(loss=name)(logits, torch.full((1, 1, 1, 3), target), None, 0.0)
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            "linear",
            {"loss": "cross_entropy"},
            "expected squared or absolute for autoencoder:linear, .* found cross_ent",
        ),
        ("sparse", {}, "expected threshold, mean or divergence for autoencoder:sparse, found none"),
        ("unet", {"beta": 2.0}, "beta belong to autoencoder:variational and would have no effect with unet"),
        ("variational", {"sparsity": "mean"}, "sparsity belong to autoencoder:sparse and would have no effect"),
        (
            "convolutional",
            {"sparsity_target": 0.2, "beta_schedule": "cycle", "code": "sample"},
            "sparsity_target belong to autoencoder:sparse .*\n.*beta_schedule, code belong to autoencoder:variational",
        ),
    ],
)
def test_settings_without_effect_are_refused_together(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(kind, **settings)
