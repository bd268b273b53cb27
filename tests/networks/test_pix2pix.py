"""The discriminator of patches: what a logit sees, what it starts from; and the adversarial loss by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.networks.pix2pix import AdversarialLoss, PatchDiscriminator


def build(**settings: Any) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(**{"width": 8, **settings})


@pytest.mark.parametrize(("depth", "side"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_logit_sees_a_patch_of(depth: int, side: int) -> None:
    network = build(width=1, depth=depth, normalisation="none")
    nn.init.ones_(network.layers[-1].weight)  # type: ignore[arg-type]
    image, output = (torch.rand(1, 3, 320, 320, requires_grad=True) for _ in range(2))
    logits = network(image, output)
    row, column = logits.shape[2] // 2, logits.shape[3] // 2
    for seen in torch.autograd.grad(logits[0, 0, row, column], [image, output]):
        marked = seen[0].abs().sum(dim=0).nonzero()
        assert (marked.max(dim=0).values - marked.min(dim=0).values + 1).tolist() == [side, side]


def test_reference_has_the_published_widths() -> None:
    with torch.device("meta"):
        network = PatchDiscriminator(normalisation="batch")
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert [(layer.out_channels, layer.stride[0]) for layer in convolutions] == [
        (64, 2), (128, 2), (256, 2), (512, 1), (1, 1),
    ]  # fmt: skip
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_768_705
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == 3


@pytest.mark.parametrize("depth", [1, 3, 6])
@torch.no_grad()
def test_sizes_are_as_foretold(depth: int) -> None:
    network = build(width=1, depth=depth).eval()
    least = 3 * 2**depth
    for height, width in ((least, least), (least + 5, 2 * least + 1)):
        image = torch.rand(2, 3, height, width)
        assert network(image, image).shape == (2, 1, *network.output_size(height, width))
    with pytest.raises(ValueError, match=rf"at least {least}x{least} pixels, found {least - 1}x{least}; use larger"):
        network(torch.zeros(1, 3, least - 1, least), torch.zeros(1, 3, least - 1, least))


def test_weights_start_narrow() -> None:
    network = build(width=32)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    weights = torch.cat([layer.weight.detach().flatten() for layer in convolutions])
    assert float(weights.std()) == pytest.approx(0.02, rel=0.02)
    assert not any(layer.bias.any() for layer in convolutions if layer.bias is not None)
    scales = torch.cat([layer.weight for layer in network.modules() if isinstance(layer, nn.InstanceNorm2d)])
    assert float(scales.detach().mean()) == pytest.approx(1.0, abs=0.01)


@torch.no_grad()
def test_images_of_a_batch_are_judged_alone() -> None:
    network = build().train()
    image, output = torch.rand(2, 3, 40, 40), torch.rand(2, 3, 40, 40)
    torch.testing.assert_close(network(image, output)[:1], network(image[:1], output[:1]))


def test_the_image_counts_beside_the_output() -> None:
    network = build()
    image, output = torch.rand(1, 3, 40, 40), torch.rand(1, 3, 40, 40)
    assert not torch.allclose(network(image, output), network(output, output))


def test_bfloat16_and_channels_last() -> None:
    network = build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image, output = torch.rand(2, 3, 40, 40), torch.rand(2, 3, 40, 40)
    with torch.autocast("cpu", torch.bfloat16):
        loss = AdversarialLoss("cross_entropy").generator(network(image, output))
    assert loss.dtype == torch.float32
    loss.backward()
    assert [name for name, parameter in network.named_parameters() if not parameter.grad.any()] == []  # type: ignore[union-attr]


REAL, FAKE = torch.tensor([1.5, -0.5]), torch.tensor([0.25, -2.0])


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_cross_entropy_by_hand() -> None:
    loss = AdversarialLoss("cross_entropy")
    real = (softplus(-1.5) + softplus(0.5)) / 2
    fake = (softplus(0.25) + softplus(-2.0)) / 2
    assert float(loss.discriminator(REAL, FAKE)) == pytest.approx((real + fake) / 2)
    assert float(loss.generator(FAKE)) == pytest.approx((softplus(-0.25) + softplus(2.0)) / 2)
    undecided = torch.zeros(3)
    assert float(loss.discriminator(undecided, undecided)) == pytest.approx(math.log(2))


def test_squared_by_hand() -> None:
    loss = AdversarialLoss("squared")
    assert float(loss.discriminator(REAL, FAKE)) == pytest.approx(((0.25 + 2.25) / 2 + (0.0625 + 4.0) / 2) / 2)
    assert float(loss.generator(FAKE)) == pytest.approx((0.5625 + 9.0) / 2)


@pytest.mark.parametrize("objective", ["cross_entropy", "squared"])
def test_thirty_steps_tell_real_from_made(objective: Any) -> None:
    network, loss = build(depth=2), AdversarialLoss(objective)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3, betas=(0.5, 0.999))
    image = torch.rand(2, 3, 32, 32)
    real, fake = 1 - image, torch.rand(2, 3, 32, 32)
    losses = []
    for _ in range(30):
        value = loss.discriminator(network(image, real), network(image, fake))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(float(value.detach()))
    assert losses[-1] < 0.5 * losses[0]
