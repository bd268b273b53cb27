"""The inside of a window is made as the whole window's map shows it, and without the work on the rim."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import ComputeSettings, NetworkSettings, PredictSettings
from pipeline.inference import FLIPS, Predictor
from pipeline.networks import Network, build_network
from pipeline.networks.inside import NO_MARGINS, Margins

CPU = ComputeSettings(device="cpu", precision="fp32", channels_last=True, threads=1, workers=0)
SMALL: dict[str, Any] = {"encoder_name": "tu-mobilenetv3_small_050", "decoder_channels": (16, 16, 8, 8, 4)}
SPARING: dict[str, dict[str, Any]] = {
    "unet": {"width": 4},
    "unet without norm": {"width": 4, "depth": 2, "normalisation": "none"},
    "unet residual": {"width": 4, "depth": 3, "residual": True},
    "smp:Unet": {"arguments": SMALL},
    "smp:Unet with a center": {"arguments": {"encoder_name": "vgg11_bn", "decoder_channels": (16, 16, 8, 8, 4)}},
    "smp:Unet of three levels": {
        "arguments": {"encoder_name": "resnet18", "encoder_depth": 3, "decoder_channels": (16, 8, 4)}
    },
    "smp:Unet without norm": {"arguments": {**SMALL, "decoder_use_norm": "identity"}},
    "smp:Unet with weights": {"arguments": {"encoder_name": "tu-tf_efficientnet_lite0", "encoder_weights": "imagenet"}},
}
WHOLE: dict[str, dict[str, Any]] = {
    "unet": {"width": 4, "depth": 2, "normalisation": "instance"},
    "unet of groups": {"width": 8, "depth": 2, "normalisation": "group"},
    "smp:Unet": {"arguments": {**SMALL, "decoder_channels": (16,) * 5, "decoder_attention_type": "scse"}},
    "smp:Unet smooth": {"arguments": {**SMALL, "decoder_interpolation": "bilinear"}},
    "smp:FPN": {"arguments": {"encoder_name": "tu-mobilenetv3_small_050"}},
    "smp:UnetPlusPlus": {"arguments": SMALL},
    "monai:BasicUNet": {"arguments": {"features": (4, 4, 8, 8, 16, 4)}},
}
"""Networks that make the whole map first."""
CUTS = (Margins(96, 96, 96, 96), Margins(0, 70, 33, 0), Margins(1, 2, 3, 4), Margins(0, 0, 191, 0), NO_MARGINS)


def network_of(entry: str, settings: dict[str, Any]) -> Network:
    torch.manual_seed(0)
    outputs = 3 if settings.get("residual") else 2
    network = build_network(NetworkSettings(name=entry.split()[0], **settings), channels=3, outputs=outputs)
    # Weights of any kind, so that no level is idle.
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        for _ in range(2):
            network.train()(torch.rand(2, 3, 128, 128))
    return network.eval()


@pytest.mark.parametrize("entry", [*SPARING, *(f"{name} " for name in WHOLE)])
@torch.inference_mode()
def test_the_inside_is_that_of_the_whole_map(entry: str) -> None:
    network = network_of(entry, SPARING[entry] if entry in SPARING else WHOLE[entry[:-1]])
    for image in (torch.rand(1, 3, 256, 320), torch.rand(2, 3, 250, 256)):
        whole = network(image)
        for cut in CUTS:
            torch.testing.assert_close(network.inside(image, cut), cut.of(whole), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("entry", SPARING)
@torch.inference_mode()
def test_the_rim_costs_the_decoder_little(entry: str) -> None:
    network, image = network_of(entry, SPARING[entry]), torch.rand(1, 3, 256, 256)
    with FlopCounterMode(display=False) as whole:
        network(image)
    with FlopCounterMode(display=False) as inside:
        network.inside(image, Margins(96, 96, 96, 96))
    # The encoder sees all of the window either way; it is most of VGG and of three levels of a ResNet.
    most = {"smp:Unet with a center": 0.98, "smp:Unet of three levels": 0.9}.get(entry, 0.6)
    assert inside.get_total_flops() < most * whole.get_total_flops()


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize(
    "settings", [{"tile": 512}, {"tile": 64}, {"tile": 64, "scales": (1.4, 0.75)}, {"scales": (0.25,)}], ids=str
)
def test_a_predictor_makes_the_inside_of_what_it_sees(settings: dict[str, Any], flips: str) -> None:
    network = network_of("unet", {"width": 4, "depth": 2})
    image = cv2.GaussianBlur(np.random.default_rng(2).integers(0, 256, (211, 260, 3), np.uint8), (0, 0), 2)
    predict = Predictor(network, "sigmoid", "stretch", PredictSettings(flips=flips, batch=1, **settings), CPU)
    whole = predict(image)
    for off in (Margins(60, 40, 70, 90), Margins(0, 0, 0, 201), Margins(174, 11, 107, 66), NO_MARGINS):
        # Averages over areas round in their own way.
        apart = 1e-3 if "scales" in settings else 2e-6
        np.testing.assert_allclose(predict(image, off), off.of(whole), atol=apart)


@given(st.tuples(*[st.integers(0, 9)] * 4), st.integers(0, 3), st.booleans(), st.tuples(*[st.integers(20, 30)] * 2))
def test_margins_turn_with_the_map(sides: tuple[int, ...], turns: int, mirrored: bool, size: tuple[int, ...]) -> None:
    maps, margins = np.arange(size[0] * size[1]).reshape(size), Margins(*sides)

    def turned(seen: np.ndarray) -> np.ndarray:
        seen = np.rot90(seen, turns)
        return seen[:, ::-1] if mirrored else seen

    np.testing.assert_array_equal(margins.turned(turns, mirrored).of(turned(maps)), turned(margins.of(maps)))
