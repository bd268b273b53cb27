"""The losses: values computed by hand, parity with MONAI, and ignored pixels that change nothing."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.config import LossSettings
from pipeline.losses import SMOOTHING, TERMS, build_loss

ONE = ("foreground",)
THREE = ("background", "class 1", "class 2")


def only(name: str, **others: float) -> LossSettings:
    """A loss of one term."""
    return LossSettings(**({"cross_entropy": 0.0, "dice": 0.0, name: 1.0} | others))


def four_pixels(probabilities: list[float], truth: list[float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, target and valid of one image of 2x2 pixels."""
    logits = torch.logit(torch.tensor(probabilities)).view(1, 1, 2, 2)
    return logits, torch.tensor(truth).view(1, 1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)


PROBABILITIES, TRUTH = [0.9, 0.6, 0.3, 0.2], [1.0, 1.0, 0.0, 0.0]


def test_cross_entropy_of_four_pixels() -> None:
    expected = -(math.log(0.9) + math.log(0.6) + math.log(0.7) + math.log(0.8)) / 4
    loss = build_loss(only("cross_entropy"), "sigmoid", ONE)
    assert float(loss(*four_pixels(PROBABILITIES, TRUTH))) == pytest.approx(expected, rel=1e-6)


def test_dice_of_four_pixels() -> None:
    expected = 1 - (2 * 1.5 + SMOOTHING) / (2.0 + 2.0 + SMOOTHING)
    loss = build_loss(only("dice"), "sigmoid", ONE)
    assert float(loss(*four_pixels(PROBABILITIES, TRUTH))) == pytest.approx(expected, rel=1e-6)


def test_tversky_of_four_pixels() -> None:
    false_positives, false_negatives = 0.5, 0.5
    expected = 1 - (1.5 + SMOOTHING) / (1.5 + 0.2 * false_positives + 0.8 * false_negatives + SMOOTHING)
    loss = build_loss(only("tversky", tversky_alpha=0.2), "sigmoid", ONE)
    assert float(loss(*four_pixels(PROBABILITIES, TRUTH))) == pytest.approx(expected, rel=1e-6)


def test_tversky_alpha_weighs_false_positives() -> None:
    spilt = four_pixels([0.9, 0.9, 0.9, 0.1], TRUTH)
    lenient, strict = (build_loss(only("tversky", tversky_alpha=alpha), "sigmoid", ONE)(*spilt) for alpha in (0.1, 0.9))
    assert strict > lenient


def test_focal_of_four_pixels() -> None:
    right = [0.9, 0.6, 0.7, 0.8]
    expected = sum(-((1 - p) ** 2) * math.log(p) for p in right) / 4
    loss = build_loss(only("focal"), "sigmoid", ONE)
    assert float(loss(*four_pixels(PROBABILITIES, TRUTH))) == pytest.approx(expected, rel=1e-5)


def test_softmax_of_one_pixel() -> None:
    logits = torch.log(torch.tensor([0.2, 0.5, 0.3])).view(1, 3, 1, 1)
    target, valid = torch.tensor([[[[1]]]]), torch.ones(1, 1, 1, dtype=torch.bool)
    assert float(build_loss(only("cross_entropy"), "softmax", THREE)(logits, target, valid)) == pytest.approx(
        math.log(2)
    )
    focal = build_loss(only("focal"), "softmax", THREE)(logits, target, valid)
    assert float(focal) == pytest.approx(0.25 * math.log(2), rel=1e-5)
    dice = build_loss(only("dice"), "softmax", THREE)(logits, target, valid)
    first = 1 - (2 * 0.5 + SMOOTHING) / (0.5 + 1 + SMOOTHING)
    second = 1 - SMOOTHING / (0.3 + SMOOTHING)
    assert float(dice) == pytest.approx((first + second) / 2, rel=1e-5)


def test_terms_are_summed_with_their_weights() -> None:
    settings = LossSettings(cross_entropy=0.5, dice=2.0, focal=3.0, tversky=0.25)
    loss = build_loss(settings, "sigmoid", ONE)
    terms = loss.terms(*four_pixels(PROBABILITIES, TRUTH))
    assert list(terms) == list(TERMS)
    assert float(loss(*four_pixels(PROBABILITIES, TRUTH))) == pytest.approx(
        sum(getattr(settings, name) * float(term) for name, term in terms.items())
    )


def batch(kind: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    channels = 3
    logits = torch.randn(2, channels, 9, 7, generator=generator)
    if kind == "softmax":
        target = torch.randint(0, channels, (2, 1, 9, 7), generator=generator)
    else:
        target = torch.randint(0, 2, (2, channels, 9, 7), generator=generator).float()
    valid = torch.rand(2, 9, 7, generator=generator) > 0.3
    return logits, target, valid


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_a_volume_has_the_loss_of_its_planes_laid_side_by_side(kind: str) -> None:
    logits, target, valid = batch(kind)
    loss = build_loss(ALL.model_copy(update={"boundary_weight": 0.0}), kind, CHANNELS[kind])  # type: ignore[arg-type]
    planes = (tensor.unflatten(-2, (3, 3)) for tensor in (logits, target, valid))
    assert float(loss(*planes)) == pytest.approx(float(loss(logits, target, valid)), rel=1e-6)


CHANNELS = {"sigmoid": ("foreground", "boundary", "distance"), "softmax": THREE}
ALL = LossSettings(cross_entropy=1, dice=1, focal=1, tversky=1, boundary_weight=5)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
@pytest.mark.parametrize("name", TERMS)
def test_equals_monai_where_nothing_is_ignored(kind: str, name: str) -> None:
    from monai.losses import DiceCELoss, DiceLoss, FocalLoss, TverskyLoss

    logits, target, _ = batch(kind)
    one_hot = F.one_hot(target[:, 0], 3).movedim(-1, 1).float() if kind == "softmax" else target
    activation = {kind: True, "include_background": kind == "sigmoid"}
    smooth = {"batch": True, "smooth_nr": SMOOTHING, "smooth_dr": SMOOTHING}
    theirs = {
        # MONAI takes binary cross-entropy for a single channel only.
        "cross_entropy": lambda: DiceCELoss(**activation, lambda_dice=0.0)(
            *((logits, one_hot) if kind == "softmax" else (logits.reshape(6, 1, 9, 7), one_hot.reshape(6, 1, 9, 7)))
        ),
        "dice": lambda: DiceLoss(**activation, **smooth)(logits, one_hot),
        "tversky": lambda: TverskyLoss(**activation, **smooth, alpha=0.3, beta=0.7)(logits, one_hot),
        "focal": lambda: FocalLoss(use_softmax=kind == "softmax")(logits, one_hot) * (3 if kind == "softmax" else 1),
    }[name]()
    names = THREE if kind == "softmax" else ("a", "b", "c")
    ours = build_loss(only(name), kind, names)(logits, target, torch.ones(2, 9, 7, dtype=torch.bool))  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
@pytest.mark.parametrize("poison", [1e4, float("inf"), float("nan")])
def test_ignored_pixels_change_neither_value_nor_gradient(kind: str, poison: float) -> None:
    logits, target, valid = batch(kind)
    weight = torch.rand(2, 9, 7)
    loss = build_loss(ALL, kind, CHANNELS[kind])  # type: ignore[arg-type]
    results = []
    for altered in (False, True):
        given = logits.clone()
        truth = target.clone()
        if altered:
            given = torch.where(valid.unsqueeze(1), given, torch.tensor(poison))
            truth = torch.where(valid.unsqueeze(1), truth, 65535)
        given.requires_grad_()
        value = loss(given, truth, valid, weight)
        value.backward()
        results.append((value.detach(), given.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=0)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=0)
    assert results[1][1] is not None
    assert not results[1][1].movedim(1, -1)[~valid].any()
    assert results[1][1].movedim(1, -1)[valid].any(dim=-1).all()


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_ignored_pixels_are_as_if_they_were_not_there(kind: str) -> None:
    logits, target, _ = batch(kind)
    valid = torch.ones(2, 9, 7, dtype=torch.bool)
    valid[:, 5:] = False
    loss = build_loss(ALL, kind, CHANNELS[kind])  # type: ignore[arg-type]
    cropped = loss(logits[:, :, :5], target[:, :, :5], valid[:, :5])
    torch.testing.assert_close(loss(logits, target, valid), cropped)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_nothing_to_learn_from_is_no_loss(kind: str) -> None:
    logits, target, valid = batch(kind)
    logits.requires_grad_()
    loss = build_loss(ALL, kind, CHANNELS[kind])(logits, target, torch.zeros_like(valid))  # type: ignore[arg-type]
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_an_absent_class_costs_little_where_it_is_not_predicted(kind: str) -> None:
    target = torch.zeros(1, 1, 8, 8)
    logits = torch.full((1, 1, 8, 8), -12.0)
    names: tuple[str, ...] = ONE
    if kind == "softmax":
        logits = torch.cat([torch.full((1, 1, 8, 8), 12.0), logits, logits], dim=1)
        names = THREE
    logits.requires_grad_()
    loss = build_loss(ALL, kind, names)(logits, target, torch.ones(1, 8, 8, dtype=torch.bool))  # type: ignore[arg-type]
    loss.backward()
    assert 0.0 <= float(loss.detach()) < 0.01
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_gradient_is_that_of_the_value(kind: str) -> None:
    logits, target, valid = (
        tensor[:1, :, :2, :3] if tensor.ndim == 4 else tensor[:1, :2, :3] for tensor in batch(kind)
    )
    loss = build_loss(ALL, kind, CHANNELS[kind])  # type: ignore[arg-type]
    weight = torch.rand(1, 2, 3)
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits, target, valid, weight), logits)
    step = 1e-2
    with torch.no_grad():
        rise = loss(logits + step * direction, target, valid, weight) - loss(
            logits - step * direction, target, valid, weight
        )
    assert float((gradient * direction).sum()) == pytest.approx(float(rise) / (2 * step), rel=2e-3)


def test_border_weight_counts_pixels_more_often() -> None:
    logits, target, valid = four_pixels(PROBABILITIES, TRUTH)
    plain = build_loss(only("cross_entropy", boundary_weight=10.0), "sigmoid", ONE)
    weight = torch.tensor([[[0.0, 0.5], [0.0, 0.0]]])
    expected = -(math.log(0.9) + 6 * math.log(0.6) + math.log(0.7) + math.log(0.8)) / 4
    assert float(plain(logits, target, valid, weight)) == pytest.approx(expected, rel=1e-6)


def test_distance_is_least_where_probability_equals_it() -> None:
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    target = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(1)).round(decimals=2).clamp(0.05, 0.95)
    target[:, 0] = target[:, 0].round()
    loss = build_loss(only("dice"), "sigmoid", ("foreground", "distance"))
    assert set(loss.terms(logits, target, torch.ones(1, 4, 4, dtype=torch.bool))) == {"dice", "quantities"}
    at_truth = torch.logit(target[:, 1:]).expand(1, 2, 4, 4).clone().requires_grad_()
    loss.terms(at_truth, target, torch.ones(1, 4, 4, dtype=torch.bool))["quantities"].backward()
    assert at_truth.grad is not None
    assert float(at_truth.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_computed_in_float32_under_autocast(kind: str) -> None:
    logits, target, valid = batch(kind)
    half = logits.bfloat16()
    loss = build_loss(ALL, kind, CHANNELS[kind])  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(half, target, valid)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(half.float(), target, valid), rtol=0, atol=0)


def test_softmax_needs_two_channels() -> None:
    with pytest.raises(ValueError, match="at least background and one class"):
        build_loss(LossSettings(), "softmax", ("background",))


def test_classes_of_objects_are_learned_on_foreground_alone() -> None:
    channels = ("foreground", "class a", "class b")
    target = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).view(1, 3, 1, 3)
    logits = torch.logit(torch.tensor([[0.9, 0.9, 0.9], [0.8, 0.3, 0.9], [0.4, 0.6, 0.9]])).view(1, 3, 1, 3)
    logits.requires_grad_()
    loss = build_loss(only("cross_entropy"), "sigmoid", channels)
    found = loss.terms(logits, target, torch.ones(1, 1, 3, dtype=torch.bool))
    expected = -sum(map(math.log, (0.8, 0.7, 0.6, 0.6))) / 4
    assert float(found["classes"].detach()) == pytest.approx(expected, rel=1e-6)
    assert float(found["cross_entropy"].detach()) == pytest.approx(-(2 * math.log(0.9) + math.log(0.1)) / 3, rel=1e-5)
    (gradient,) = torch.autograd.grad(found["classes"], logits)
    assert not gradient[0, 0].any() and not gradient[0, :, 0, 2].any() and gradient[0, 1:, 0, :2].all()
