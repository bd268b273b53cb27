"""The autoencoders: known numbers, what each kind promises, every size, and that all of them learn."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config import Config, NetworkSettings, ReconstructionSettings, TrainSettings
from pipeline.networks import build_network
from pipeline.networks.autoencoders import (
    ACTIVE_VARIANCE,
    KINDS,
    LARGEST_LOG_VARIANCE,
    Autoencoder,
    Code,
    Kind,
    active_latents,
    active_share,
    cosines,
    reparameterise,
)
from pipeline.reconstruction_losses import ReconstructionLoss


def build(kind: Kind, **settings: Any) -> Autoencoder:
    torch.manual_seed(0)
    if kind == "denoising":
        settings = {"dropout": 0.1, **settings}
    return Autoencoder(kind, 3, 3, **{"width": 4, "depth": 2, "code": 8, **settings})


def tissue(count: int = 2, side: int = 64) -> Tensor:
    """Smooth, bright, coloured images."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, 3, side // 8, side // 8, generator=generator)
    return nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1) * 0.6 + 0.3


# ---------------------------------------------------------------- reparameterisation


def test_reparameterisation_of_known_numbers() -> None:
    legacy = np.random.RandomState(420)
    draws = [torch.from_numpy(legacy.standard_normal(100)) for _ in range(3)]
    noise = torch.stack([draw[element] for draw, element in zip(draws, (50, 2, 87), strict=True)])
    mean = torch.tensor([3.0, 2.0, 5.0], dtype=torch.float64, requires_grad=True)
    deviation = torch.tensor([5.0, 4.0, 7.0], dtype=torch.float64, requires_grad=True)
    values = reparameterise(mean, 2 * deviation.log(), noise)
    expected = torch.tensor([-1.316504668771417, -0.6201637857596833, 0.382754792922813], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-14)
    values.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(deviation.grad, noise)


def test_the_model_draws_by_its_own_reparameterisation() -> None:
    network = build("variational").train()
    image = tissue()
    torch.manual_seed(420)
    code = network.encode(image)
    torch.manual_seed(420)
    assert code.mean is not None and code.log_variance is not None
    expected = reparameterise(code.mean, code.log_variance, torch.randn_like(code.mean))
    assert torch.equal(code.values, expected)
    gradients = torch.autograd.grad(code.values.square().sum(), [code.mean, code.log_variance])
    assert all(gradient.abs().min() > 0 for gradient in gradients)


# ---------------------------------------------------------------- sizes and codes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [1, 3])
@torch.no_grad()
def test_every_size_has_the_code_that_is_foretold(kind: Kind, depth: int) -> None:
    network = build(kind, depth=depth, code=5).eval()
    for height, width in ((1, 1), (1, 40), (3, 2), (17, 31), (32, 48)):
        image = torch.rand(2, 3, height, width)
        logits, code = network(image, with_code=True)
        assert logits.shape == image.shape
        assert logits.isfinite().all()
        places = [max(2, math.ceil(side / 2**depth)) for side in (height, width)]
        assert code.values.shape == (2, 5, *places) == (2, 5, *network.code_size(height, width))
        assert torch.equal(network.decode(code.values, height, width), logits)
        assert torch.equal(network(image), logits)


@pytest.mark.parametrize("normalisation", ["batch", "group", "instance", "none"])
def test_a_single_pixel_trains(normalisation: str) -> None:
    network = build("variational", normalisation=normalisation).train()
    network(torch.rand(1, 3, 1, 1)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_a_code_of_another_size_is_refused() -> None:
    network = build("convolutional")
    with pytest.raises(ValueError, match="expected a code of 8x4x5 numbers for an image of 15x17 pixels, found 8x4x4"):
        network.decode(torch.zeros(1, 8, 4, 4), 15, 17)
    with pytest.raises(ValueError, match=r"expected a code of 8x4x4 numbers .* found 7x4x4"):
        network.decode(torch.zeros(1, 7, 4, 4), 16, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_all_parameters_and_the_image(kind: Kind) -> None:
    network = build(kind).train()
    image = tissue().requires_grad_()
    logits, _ = network(image, with_code=True)
    (logits * torch.randn_like(logits)).sum().backward()
    assert [name for name, parameter in network.named_parameters() if not cast(Tensor, parameter.grad).any()] == []
    assert cast(Tensor, image.grad).abs().sum(dim=1).min() > 0


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_borders_are_like_the_middle(kind: Kind) -> None:
    network = build(kind, depth=1).eval()
    logits = network(torch.full((1, 3, 10, 16), 0.8))
    # What an image of one colour becomes repeats from block to block, up to the border.
    blocks = logits.unfold(2, 2, 2).unfold(3, 2, 2)
    torch.testing.assert_close(blocks, blocks[:, :, 2:3, 2:3].expand_as(blocks), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_keeps_codes_in_float32(kind: Kind) -> None:
    network = build(kind).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits, code = network(tissue(), with_code=True)
    given = [tensor for tensor in code if tensor is not None]
    assert {tensor.dtype for tensor in given} == {torch.float32}
    assert len(given) == (3 if kind == "variational" else 1)
    assert logits.isfinite().all()


def test_fabric_hands_the_code_through_under_mixed_precision() -> None:
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    network = fabric.setup(build("variational"))
    logits, code = network(tissue(), with_code=True)
    assert isinstance(code, Code)
    assert logits.dtype == code.values.dtype == torch.float32
    fabric.backward(cast(Tensor, code.log_variance).sum())
    assert cast(Tensor, network.encoder[0].weight.grad).any()


@pytest.mark.parametrize("kind", KINDS)
def test_activation_is_the_one_that_tasks_apply(kind: Kind) -> None:
    from pipeline.outputs import image_activation

    settings = NetworkSettings(name=f"autoencoder:{kind}", dropout=0.1 if kind == "denoising" else 0.0)
    network = build_network(settings, 3, 3)
    assert isinstance(network, Autoencoder)
    assert network.activation == image_activation(Config(train=TrainSettings(network=settings)))


def test_parameters_follow_the_settings() -> None:
    def count(**settings: Any) -> int:
        return sum(parameter.numel() for parameter in build(**settings).parameters())

    # Stem, two halvings, head; mirrored. Batch norm has two numbers a channel.
    down = 3 * 4 * 9 + 4 * 8 * 16 + 8 * 16 * 16 + 16 * 8 * 9 + 8
    up = 8 * 16 * 9 + 16 * 8 * 16 + 8 * 4 * 16 + 4 * 3 * 9 + 3
    norms = 2 * (4 + 8 + 16 + 16 + 8 + 4)
    assert count(kind="convolutional") == down + up + norms
    assert count(kind="variational") == down + up + norms + 16 * 8 * 9 + 8
    assert count(kind="linear") == 2 * 8 * 3 * 8**2 + 8 + 3


# ---------------------------------------------------------------- linear


@torch.no_grad()
def test_linear_is_affine_in_the_image() -> None:
    network = build("linear", depth=3, code=16).double()
    first, second = (torch.rand(1, 3, 33, 47, dtype=torch.float64) for _ in range(2))
    for share in (0.3, -1.5, 4.0):
        mixed = network(share * first + (1 - share) * second)
        torch.testing.assert_close(mixed, share * network(first) + (1 - share) * network(second))


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("more", [0, 5])
@torch.no_grad()
def test_linear_starts_as_the_identity_where_the_code_is_large_enough(depth: int, more: int) -> None:
    network = build("linear", depth=depth, code=3 * 4**depth + more)
    for module in (network.encoder, network.decoder):
        weight = cast(Tensor, cast(nn.Module, module.projection).weight)
        weight[3 * 4**depth :] = 0.0  # what is left over starts at random
    image = torch.rand(2, 3, 21, 34)
    torch.testing.assert_close(network(image), image, rtol=0, atol=1e-5)


@torch.no_grad()
def test_linear_starts_from_the_mean_of_each_block_where_the_code_is_small() -> None:
    image = torch.rand(1, 3, 24, 40)
    means = nn.functional.avg_pool2d(image, 8).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    torch.testing.assert_close(build("linear", depth=3, code=3)(image), means)


@pytest.mark.parametrize(("count", "channels", "side"), [(7, 3, 2), (50, 3, 4), (5, 1, 8)])
def test_cosines_are_orthonormal_and_begin_with_the_mean(count: int, channels: int, side: int) -> None:
    blocks = cosines(count, channels, side).flatten(1)
    assert len(blocks) == min(count, channels * side**2)
    torch.testing.assert_close(blocks @ blocks.T, torch.eye(len(blocks)), rtol=0, atol=1e-6)
    for channel in range(channels):
        expected = torch.zeros(channels, side, side)
        expected[channel] = 1 / side
        torch.testing.assert_close(blocks[channel], expected.flatten())


def test_linear_makes_maps_of_another_number_of_channels() -> None:
    network = Autoencoder("linear", 3, 1, depth=2, code=8)
    assert network(tissue()).shape == (2, 1, 64, 64)


# ---------------------------------------------------------------- denoising, sparse


def test_weights_of_the_plain_autoencoder_start_the_denoising_and_sparse_ones() -> None:
    plain = build("convolutional").eval()
    image = tissue()
    for kind in ("denoising", "sparse"):
        other = build(kind).eval()
        other.load_state_dict(plain.state_dict())
        expected = plain.encode(image).values
        if kind == "sparse":
            expected = expected.sigmoid()
        assert torch.equal(other.encode(image).values, expected)


def test_dropout_drops_in_training_only() -> None:
    network = build("denoising", dropout=0.5)
    image = tissue()
    with torch.no_grad():
        assert not torch.equal(network(image), network(image))
        network.eval()
        assert torch.equal(network(image), network(image))
    shares = [module.p for module in network.modules() if isinstance(module, nn.Dropout)]
    assert shares == [0.5, 0.5, 0.5, 0.0]  # after every halving and every doubling but the last


@torch.no_grad()
def test_sparse_codes_are_shares_and_their_active_share_is_counted() -> None:
    code = build("sparse").eval().encode(tissue())
    assert code.values.min() >= 0 and code.values.max() <= 1
    assert active_share(torch.tensor([[0.05, 0.1, 0.2, 0.9]]), 0.1) == 0.5
    assert active_share(code.values, 0.0) == 1.0


# ---------------------------------------------------------------- variational


@torch.no_grad()
def test_variational_is_random_in_training_and_as_set_in_use() -> None:
    network = build("variational")
    image = tissue()
    assert not torch.equal(network.train()(image), network(image))
    assert torch.equal(network.eval()(image), network(image))
    code = network.encode(image)
    assert torch.equal(code.values, cast(Tensor, code.mean))
    network.use = "sample"
    assert not torch.equal(network(image), network(image))


@torch.no_grad()
def test_log_variance_is_bounded_whatever_comes() -> None:
    network = build("variational", normalisation="none").eval()
    for scale in (1e3, 1e6, 1e12):
        code = network.encode(scale * tissue())
        assert cast(Tensor, code.log_variance).abs().max() <= LARGEST_LOG_VARIANCE
        assert code.values.isfinite().all()


@torch.no_grad()
def test_sampling_is_decoded_noise_and_follows_the_seed() -> None:
    network = build("variational").eval()
    images = network.sample(3, 30, 41, torch.Generator().manual_seed(7))
    assert images.shape == (3, 3, 30, 41)
    noise = torch.randn(3, 8, 8, 11, generator=torch.Generator().manual_seed(7))
    assert torch.equal(images, network.decode(noise, 30, 41))
    assert not torch.equal(images, network.sample(3, 30, 41, torch.Generator().manual_seed(8)))
    with pytest.raises(ValueError, match="autoencoder:sparse: expected a variational autoencoder to draw images from"):
        build("sparse").sample(1, 8, 8, torch.Generator())


def test_active_latents_are_those_whose_mean_varies() -> None:
    means = torch.zeros(4, 3, 2, 2)
    means[:, 0] = 5.0  # far from 0, and the same for every sample
    means[:2, 1] = 2.1 * ACTIVE_VARIANCE**0.5
    means[:2, 2] = 1.9 * ACTIVE_VARIANCE**0.5
    assert active_latents(means) == 1
    assert active_latents(torch.zeros(4, 3, 2, 2)) == 0
    assert active_latents(means[:, :, 0, 0]) == 1


# ---------------------------------------------------------------- learning

LOSSES: dict[str, ReconstructionSettings] = {
    "linear": ReconstructionSettings(loss="squared"),
    "convolutional": ReconstructionSettings(loss="absolute", ssim=0.2),
    "denoising": ReconstructionSettings(loss="cross_entropy"),
    "sparse": ReconstructionSettings(loss="kullback_leibler", sparsity="divergence", sparsity_weight=0.01),
    "variational": ReconstructionSettings(loss="squared", beta=0.01, beta_schedule="constant"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_thirty_steps_on_one_crop_lower_loss_and_error(kind: Kind) -> None:
    network = build(kind, width=8, code=3 if kind == "linear" else 16).train()
    loss = ReconstructionLoss(LOSSES[kind], kind)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    image = tissue(side=32)
    losses = []
    for _ in range(30):
        logits, code = network(image, with_code=True)
        value = loss(logits, image, code, 1.0)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(float(value.detach()))
    entropy = float((torch.special.entr(image) + torch.special.entr(1 - image)).mean()) if kind == "denoising" else 0.0
    assert losses[-1] - entropy < 0.5 * (losses[0] - entropy)
    assert np.mean(losses[-5:]) < np.mean(losses[5:10])
