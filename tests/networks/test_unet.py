"""The U-Net: the reference numbers, every size, and the place that each output pixel belongs to."""

from __future__ import annotations

import itertools

import pytest
import torch

from pipeline.config import NetworkSettings
from pipeline.networks import summary
from pipeline.networks.unet import UNet, enlarged

REFERENCE = NetworkSettings(width=64, padded=False)


def test_reference_has_the_published_numbers() -> None:
    with torch.device("meta"):
        network = UNet(1, 2, width=64, padded=False)
    assert sum(parameter.numel() for parameter in network.parameters()) == 39_393_410
    assert network(torch.empty(1, 1, 572, 572, device="meta")).shape == (1, 2, 388, 388)
    assert network.output_size(572, 572) == (388, 388)
    assert network.margin == (572 - 388) // 2


def test_summary_prints_the_published_numbers() -> None:
    table = summary(REFERENCE, channels=1, outputs=2, height=572, width=572)
    assert "Total params: 39,393,410" in table
    assert "Total mult-adds (G): 235.07" in table
    assert "[1, 2, 388, 388]" in table


VARIANTS = list(itertools.product((True, False), (1, 2, 4)))


@pytest.mark.parametrize(("padded", "stride"), VARIANTS)
@torch.no_grad()
def test_sizes_are_as_foretold(padded: bool, stride: int) -> None:
    network = UNet(1, 1, width=1, depth=2, padded=padded, output_stride=stride).eval()
    smallest, _ = network.input_size(1, 1)
    for height in range(smallest, smallest + 14):
        width = height + 3
        size = network.output_size(height, width)
        assert network(torch.zeros(1, 1, height, width)).shape[-2:] == size
        assert padded or network.margin + size[0] * stride <= height
        needed = network.input_size(*size)
        assert needed[0] <= height
        assert network.output_size(*needed) == size
        if needed[0] > smallest:
            assert network.output_size(needed[0] - 1, width)[0] < size[0]


def test_too_small_for_unpadded_names_the_smallest() -> None:
    network = UNet(3, 2, width=1, padded=False)
    with pytest.raises(ValueError, match=r"at least 173x173 pixels, found 172x200.*network\.padded=true"):
        network(torch.zeros(1, 3, 172, 200))
    assert network.output_size(173, 173) == (4, 4)


@pytest.mark.parametrize("size", [144, 149])
@pytest.mark.parametrize(("padded", "stride"), VARIANTS)
@torch.no_grad()
def test_output_pixels_stand_where_they_say(padded: bool, stride: int, size: int) -> None:
    network = UNet(1, 1, width=1, depth=3, padded=padded, normalisation="none", output_stride=stride).eval()
    # What comes through the skip of the finest level alone: NaN at one pixel of the image marks what depends on it.
    network.upward[-1].register_forward_hook(lambda module, given, output: torch.zeros_like(output))
    for row in (68, 69, 70, 71):
        image = torch.zeros(1, 1, size, size)
        image[0, 0, row, 72] = torch.nan
        marked = network(image)[0, 0].isnan().nonzero().float()
        first, last = marked.min(dim=0).values, marked.max(dim=0).values
        centre = network.margin + ((first + last) / 2 + 0.5) * stride
        expected = torch.tensor([row + 0.5, 72.5])
        torch.testing.assert_close(centre, expected, rtol=0, atol=0 if stride == 1 else stride / 2)


@torch.no_grad()
def test_unpadded_net_moves_with_the_image() -> None:
    torch.manual_seed(0)
    network = UNet(1, 2, width=2, depth=2, padded=False).eval()
    image = torch.rand(1, 1, 96, 96)
    whole, moved = network(image), network(image[..., 8:, 4:])
    edge = 12  # transposed and output convolutions see zeros beyond their map
    torch.testing.assert_close(whole[..., 8:, 4:][..., edge:-edge, edge:-edge], moved[..., edge:-edge, edge:-edge])


@pytest.mark.parametrize("normalisation", ["batch", "group", "instance", "none"])
@torch.no_grad()
def test_a_single_pixel_goes_through(normalisation: str) -> None:
    network = UNet(3, 2, width=4, normalisation=normalisation)  # type: ignore[arg-type]
    assert network(torch.rand(1, 3, 1, 1)).shape == (1, 2, 1, 1)


def test_convolutions_have_a_bias_where_nothing_normalises() -> None:
    biases = {
        kind: [name for name, _ in UNet(1, 1, width=1, depth=1, normalisation=kind).encoder.named_parameters()]  # type: ignore[arg-type]
        for kind in ("batch", "none")
    }
    assert "0.0.bias" not in biases["batch"]
    assert "0.0.bias" in biases["none"]


def test_features_keep_their_variance_when_training_starts() -> None:
    torch.manual_seed(0)
    network = UNet(3, 1, width=16, normalisation="none")
    deviation = float(network(torch.randn(2, 3, 64, 64)).detach().std())
    assert 0.3 < deviation < 3.0


def test_dropout_is_at_the_bottleneck_only_in_training() -> None:
    torch.manual_seed(0)
    network = UNet(1, 1, width=2, depth=2, dropout=0.5)
    image = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        assert not torch.equal(network(image), network(image))
        network.eval()
        assert torch.equal(network(image), network(image))


def test_stride_beyond_the_depth_is_refused() -> None:
    with pytest.raises(ValueError, match=r"network\.output_stride: expected a power of 2 up to 2\^depth = 4, found 8"):
        UNet(3, 1, width=1, depth=2, output_stride=8)


def test_enlarging_mirrors_and_repeats() -> None:
    row = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    assert enlarged(row.expand(1, 1, 2, 3), 2, 5)[0, 0, 0].tolist() == [1, 2, 3, 2, 1]
    assert enlarged(row, 2, 7)[0, 0].tolist() == [[1, 2, 3, 3, 3, 3, 3]] * 2


@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 50), (64, 64)])
@torch.no_grad()
def test_a_residual_network_begins_as_the_identity_to_the_grey_level(height: int, width: int) -> None:
    levels = torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(height))
    levels[..., 0, 0] = torch.tensor([0, 128, 255])
    network = UNet(3, 3, width=2, depth=2, residual=True).eval()
    made = torch.sigmoid(network(levels / 255.0))
    assert torch.equal((made * 255.0).round().long(), levels)


def test_a_residual_network_learns_the_change() -> None:
    torch.manual_seed(1)
    network = UNet(3, 3, width=2, depth=1, residual=True)
    image = torch.rand(1, 3, 16, 16)
    torch.sigmoid(network(image)).mean().backward()
    assert network.output.weight.grad is not None and network.output.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("settings", [{"outputs": 2}, {"padded": False}, {"output_stride": 2}])
def test_residual_is_refused_where_no_image_comes_out(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"network\.residual: expected an image"):
        UNet(3, **{"outputs": 3, "width": 2, "depth": 2, "residual": True} | settings)  # type: ignore[arg-type]
