"""Tiles, blending and flips: what is predicted does not depend on how the image is cut."""

from __future__ import annotations

import copy

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from pipeline.config import ComputeSettings, NetworkSettings, PredictSettings
from pipeline.inference import FLIPS, Predictor, predictor_of
from pipeline.networks import Network, build_network
from pipeline.networks.autoencoders import Autoencoder
from pipeline.networks.inside import Margins

CPU = ComputeSettings(device="cpu", precision="fp32", channels_last=True, threads=1, workers=0)


class Brightness(Network):
    """A network of one pixel's reach: logit = brightness, so that any tiling must give the same."""

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean(dim=1, keepdim=True) * 4 - 2


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


NETWORKS = [
    {"depth": 1}, {"depth": 2}, {"depth": 3}, {"depth": 2, "residual": True}, {"depth": 2, "normalisation": "none"},
    *({"name": f"autoencoder:{kind}", "depth": depth, "code": 6} for kind in ("convolutional", "variational")
      for depth in (1, 2, 3)),
    *({"name": "autoencoder:linear", "depth": depth, "code": 6} for depth in (1, 3)),
]  # fmt: skip


@pytest.mark.parametrize("settings", NETWORKS)
def test_an_image_is_made_in_tiles_as_it_is_made_whole(settings: dict[str, object]) -> None:
    network = varied(settings)
    image = picture(301, 262)
    made = [
        predictor_of(network, "identity", "stored", PredictSettings(tile=tile, batch=1), CPU, makes_images=True)(image)
        for tile in (64, 4096)
    ]
    assert made[1].std() > 0.02
    np.testing.assert_allclose(made[0], made[1], atol=2e-5)


@pytest.mark.parametrize("flips", ["none", "all"])
def test_a_sampled_code_is_the_same_each_time_and_in_each_tile(flips: str) -> None:
    network = varied({"name": "autoencoder:variational", "depth": 2, "code": 6})
    assert isinstance(network, Autoencoder)
    mean = predictor_of(network, "identity", "stored", PredictSettings(flips=flips), CPU, makes_images=True)
    image, other = picture(210, 150), picture(150, 210)
    plain = mean(image)
    network.use = "sample"
    predict = [
        predictor_of(
            network, "identity", "stored", PredictSettings(tile=tile, batch=batch, flips=flips), CPU, makes_images=True
        )
        for tile, batch in ((512, 4), (64, 1), (64, 5))
    ]
    first = predict[0](image)
    predict[0](other)
    np.testing.assert_array_equal(predict[0](image), first)
    np.testing.assert_allclose(predict[1](image), first, atol=2e-5)
    np.testing.assert_allclose(predict[2](image), predict[1](image), atol=1e-6)
    assert np.abs(first - plain).max() > 0.01


def test_an_image_that_is_no_number_is_refused_by_name() -> None:
    network = varied({"depth": 1})
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    predict = predictor_of(
        network, "sigmoid", "stored", PredictSettings(), CPU, makes_images=True, name="data/train/broken/best.pt"
    )
    with pytest.raises(ValueError, match=r"broken/best\.pt: expected an image of numbers, found 300 of 300.*\(fp32\)"):
        predict(picture(10, 10))


def varied(settings: dict[str, object]) -> Network:
    """A network that makes images, whose batch statistics and output are not those of a new one."""
    torch.manual_seed(1)
    narrow = {} if str(settings.get("name")).endswith("linear") else {"width": 4}
    network = build_network(NetworkSettings.model_validate(narrow | settings), 3, 3)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
                module.bias.uniform_(-0.1, 0.3)
            if isinstance(module, nn.Conv2d) and module.out_channels == 3:
                module.weight.normal_(0, 0.05)
    return network.eval()


@pytest.mark.parametrize(
    "settings",
    [
        {"width": 4, "depth": 2}, {"width": 4, "depth": 3, "normalisation": "none"},
        {"width": 4, "depth": 2, "padded": False}, {"width": 4, "depth": 2, "output_stride": 2},
        {"width": 4, "depth": 3, "padded": False, "output_stride": 4},
    ],
)  # fmt: skip
def test_maps_do_not_depend_on_the_tiles(settings: dict[str, object]) -> None:
    one, many = _whole_and_tiled(settings, 427)
    np.testing.assert_allclose(many, one, atol=2e-5)


def test_maps_of_an_encoder_hardly_depend_on_the_tiles() -> None:
    arguments = {"encoder_name": "tu-tf_efficientnet_lite0", "encoder_weights": "imagenet"}
    torch.manual_seed(5)
    network = build_network(NetworkSettings(name="smp:Unet", arguments=arguments), 3, 2).eval()
    image = cv2.GaussianBlur(picture(900, 390), (0, 0), 3)
    whole, tiled, cut = (
        _reaching(network, reach, tile)(image) for reach, tile in ((None, 4096), (None, 64), (network.cell, 64))
    )
    # The decoder is untrained, and carries far what a trained one does not.
    apart, without = (float(np.abs(maps - whole).mean()) for maps in (tiled, cut))
    assert without > 0.01
    assert apart < 0.1 * without


def _reaching(network: Network, reach: int | None, tile: int) -> Predictor:
    predict = Predictor(copy.copy(network), "sigmoid", "stretch", PredictSettings(tile=tile, batch=1), CPU)
    predict.network.reach = network.reach if reach is None else reach
    return predict


def _whole_and_tiled(settings: dict[str, object], side: int) -> list[np.ndarray]:
    torch.manual_seed(5)
    network = build_network(NetworkSettings(**settings), 3, 2).eval()
    image = cv2.GaussianBlur(picture(side, 390), (0, 0), 3)
    return [
        Predictor(network, "sigmoid", "stretch", PredictSettings(tile=tile, batch=1), CPU)(image) for tile in (4096, 64)
    ]


@pytest.mark.parametrize("scale", [1.0, 1.4, 0.5])
@pytest.mark.parametrize("size", [(160, 128), (163, 141)])
def test_a_window_on_the_edge_of_an_image_shows_what_the_image_does(size: tuple[int, int], scale: float) -> None:
    torch.manual_seed(5)
    network = build_network(NetworkSettings(width=4, depth=2), 3, 2).eval()
    predict = Predictor(network, "sigmoid", "stored", PredictSettings(tile=512, scales=(scale,)), CPU)
    image = cv2.GaussianBlur(picture(*size), (0, 0), 2)
    whole = predict(image)
    assert whole.std() > 0.005
    # Multiples of what is a whole pixel at every size, and of no cell.
    top, left, beyond = 30, 10, 70
    low = predict(image[top:], Margins(top=beyond), (top, 0))
    np.testing.assert_allclose(low, whole[:, top + beyond :], atol=2e-6)
    right = predict(image[:, left:], Margins(left=beyond), (0, left))
    np.testing.assert_allclose(right, whole[:, :, left + beyond :], atol=2e-6)
    corner = predict(image[top:, left:], Margins(top=beyond, left=beyond), (top, left))
    np.testing.assert_allclose(corner, whole[:, top + beyond :, left + beyond :], atol=2e-6)


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize("size", [(50, 70), (64, 64), (200, 131), (1, 1)])
def test_tiles_and_flips_do_not_change_a_network_of_one_pixel(size: tuple[int, int], flips: str) -> None:
    image = picture(*size)
    settings = PredictSettings(tile=64, overlap=0.25, flips=flips, batch=1)
    found = Predictor(Brightness(), "sigmoid", "stored", settings, CPU)(image)
    expected = 1 / (1 + np.exp(2 - image.mean(axis=2) / 255 * 4))
    assert found.shape == (1, *size)
    np.testing.assert_allclose(found[0], expected, atol=2e-6)


@pytest.mark.parametrize("scales", [(0.5,), (1.4,), (2.0,), (1.0, 2.0), (0.75, 1.0, 1.5)])
def test_magnified_maps_come_back_to_their_place(scales: tuple[float, ...]) -> None:
    smooth = cv2.GaussianBlur(picture(90, 131), (0, 0), 6, borderType=cv2.BORDER_REFLECT)
    plain, found = (
        Predictor(Brightness(), "sigmoid", "stored", PredictSettings(tile=64, scales=tried), CPU)(smooth)
        for tried in ((1.0,), scales)
    )
    assert found.shape == plain.shape
    np.testing.assert_allclose(found, plain, atol=0.012)


@pytest.mark.parametrize("flips", FLIPS)
def test_directions_turn_with_the_image(flips: str) -> None:
    class Slopes(Network):
        """Points where it gets brighter, down and right, which every turn of the image must turn too."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            light = image.mean(dim=1, keepdim=True)
            padded = torch.nn.functional.pad(light, (1, 1, 1, 1), mode="replicate")
            down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
            right = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
            return torch.cat([light, 80 * down, 80 * right], dim=1)

    smooth = cv2.GaussianBlur(picture(40, 57), (0, 0), 5)
    settings = PredictSettings(tile=64, flips=flips)
    plain = Predictor(Slopes(), "sigmoid", "stored", PredictSettings(tile=64), CPU)(smooth)
    found = Predictor(Slopes(), "sigmoid", "stored", settings, CPU, directions=(1, 2))(smooth)
    assert plain[1:].std() > 0.01
    np.testing.assert_allclose(found, plain, atol=1e-5)


def test_an_image_is_made_at_its_own_magnification_only() -> None:
    settings = PredictSettings(scales=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"predict\.scales: expected \[1\.0\] for the network"):
        predictor_of(Brightness(), "identity", "stored", settings, CPU, makes_images=True)


def test_flips_make_the_result_equivariant() -> None:
    torch.manual_seed(1)
    network = build_network(NetworkSettings(width=4, depth=2), 3, 2).eval()
    predict = Predictor(network, "sigmoid", "stretch", PredictSettings(tile=512, flips="all"), CPU)
    image = picture(48, 48)
    np.testing.assert_allclose(predict(image)[:, :, ::-1], predict(image[:, ::-1]), atol=1e-5)
    np.testing.assert_allclose(np.rot90(predict(image), axes=(1, 2)), predict(np.rot90(image)), atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{"padded": False}, {"output_stride": 4}, {"padded": False, "output_stride": 2}, {}]
)
@pytest.mark.parametrize("size", [(64, 64), (37, 90)])
def test_every_network_gives_one_value_a_pixel(settings: dict, size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    network = build_network(NetworkSettings(width=4, depth=2, **settings), 3, 2).eval()
    found = Predictor(network, "softmax", "stored", PredictSettings(tile=64), CPU)(picture(*size))
    assert found.shape == (2, *size)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)


def test_an_unpadded_network_sees_each_pixel_at_its_place() -> None:
    """The output of a valid convolution on the mirrored image equals the middle of that of a larger image."""
    torch.manual_seed(1)
    network = build_network(NetworkSettings(width=4, depth=1, padded=False), 3, 1).eval()
    predict = Predictor(network, "sigmoid", "stored", PredictSettings(tile=4096), CPU)
    large = picture(120, 120)
    margin = network.margin + 6
    margin += margin % 2
    whole, part = predict(large)[0], predict(large[: 120 - 20])[0]
    np.testing.assert_allclose(whole[: 100 - 2 * margin], part[: 100 - 2 * margin], atol=1e-5)


def test_a_mirrored_border_takes_the_frame_away_that_zeros_leave() -> None:
    class Blurred(Network):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.avg_pool2d(image, 5, stride=1, padding=2)

    flat = np.full((21, 34, 3), 200, np.uint8)
    settings, compute = PredictSettings(tile=64), ComputeSettings(device="cpu", precision="fp32")
    framed = Predictor(Blurred(), "identity", "stored", settings, compute)(flat)
    whole = Predictor(Blurred(), "identity", "stored", settings, compute, border=4)(flat)
    assert framed.shape == whole.shape == (3, 21, 34)
    assert framed[:, 0, 0].max() < 0.5 * 200 / 255
    np.testing.assert_allclose(whole, 200 / 255, rtol=1e-6)


@pytest.mark.parametrize("size", [(700, 500), (150, 2000), (90, 90)])
def test_a_batch_of_tiles_is_taken_as_one_larger_tile(size: tuple[int, int]) -> None:
    seen: list[tuple[int, ...]] = []

    class Watched(Brightness):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(image.shape))
            return super().forward(image)

    image = picture(*size)
    settings = PredictSettings(tile=64, batch=9, engine="pytorch")
    Predictor(Watched(), "sigmoid", "stored", settings, CPU)(image)
    pixels = [count * height * width for count, _, height, width in seen]
    # Nothing larger than a batch of tiles, and with nothing around a pixel to see, little is looked at twice.
    assert max(pixels) <= 9 * 64**2
    assert sum(pixels) <= 1.6 * image.shape[0] * image.shape[1]
    if size == (90, 90):
        assert seen == [(1, 3, 90, 90)]
