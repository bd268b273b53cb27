"""OpenVINO gives what PyTorch gives, at sizes that it was not converted with, or is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FunctionType

import cv2
import numpy as np
import pytest
import torch

from pipeline import engines
from pipeline.config import ComputeSettings, NetworkSettings, PredictSettings
from pipeline.engines import OpenVino, forward_of
from pipeline.inference import Predictor, predictor_of
from pipeline.networks import Network, build_network
from pipeline.networks.inside import NO_MARGINS, Margins

CPU = ComputeSettings(device="cpu", precision="fp32", threads=1)
NETWORKS: list[dict[str, object]] = [
    {"width": 4, "depth": 2},
    {"name": "smp:Unet", "arguments": {"encoder_name": "tu-tf_efficientnet_lite0", "encoder_weights": None}},
    {"name": "smp:Unet", "arguments": {"encoder_name": "resnet18", "encoder_weights": None}},
]


def network_of(settings: dict[str, object]) -> Network:
    """A network whose batch norms have seen some images, so that its numbers stay moderate."""
    torch.manual_seed(3)
    network = build_network(NetworkSettings(**settings), 3, 2).train()
    with torch.no_grad():
        for _ in range(4):
            network(torch.rand(2, 3, 128, 128))
    return network.eval()


def picture(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(4).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize("settings", NETWORKS, ids=lambda settings: str(settings.get("arguments", settings)))
def test_maps_are_those_of_pytorch(settings: dict[str, object]) -> None:
    network = network_of(settings)
    image = picture(170, 330)
    plain, quick = (
        predictor_of(network, "sigmoid", "stretch", PredictSettings(engine=engine), CPU, makes_images=False)(image)
        for engine in ("pytorch", "openvino")
    )
    assert plain.std() > 0.01
    np.testing.assert_allclose(quick, plain, atol=2e-3)


@pytest.mark.parametrize("settings", NETWORKS[:2], ids=lambda settings: str(settings.get("arguments", settings)))
@torch.inference_mode()
def test_the_inside_is_that_of_pytorch(settings: dict[str, object]) -> None:
    network = network_of(settings)
    plain, quick = (forward_of(network, engine, CPU) for engine in ("pytorch", "openvino"))
    for size, off in (((256, 320), Margins(64, 90, 0, 128)), ((320, 256), Margins(64, 90, 0, 128)),
                      ((320, 256), Margins(1, 0, 100, 2)), ((320, 256), NO_MARGINS)):  # fmt: skip
        image = torch.rand(1, 3, *size)
        expected = plain(image, off)
        assert expected.shape[2:] == off.of(image).shape[2:]
        np.testing.assert_allclose(quick(image, off), expected, atol=2e-3)


def test_the_same_bytes_again_whatever_came_between() -> None:
    network = network_of(NETWORKS[0])
    forward = OpenVino(network, CPU)
    inputs = [torch.rand(1, 3, 32, 32 * count) for count in range(1, 4)]
    first = [forward(one) for one in inputs]
    again = [forward(one) for one in inputs]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_no_core_is_held() -> None:
    forward = OpenVino(network_of(NETWORKS[0]), CPU)
    forward(torch.rand(1, 3, 32, 32))
    assert forward._made.get_property("ENABLE_CPU_PINNING") is False


class Constant(Network):
    """Remembers the size of the first image, as a conversion may."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image + float(image.shape[-2]) * image.mean(dim=1, keepdim=True)


def test_auto_is_openvino_on_processors_for_what_makes_masks() -> None:
    network = network_of(NETWORKS[0])
    for makes_images, engine in ((False, OpenVino), (True, FunctionType)):
        predict = predictor_of(network, "sigmoid", "stored", PredictSettings(), CPU, makes_images=makes_images)
        assert isinstance(predict, Predictor)
        assert isinstance(predict.forward, engine)


def test_auto_is_pytorch_where_nothing_else_gives_what_it_gives(capsys: pytest.CaptureFixture[str]) -> None:
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(forward_of(Constant(), "auto", CPU)(image), Constant()(image))
    assert "noted: PyTorch runs the network; predict.engine=openvino: expected" in capsys.readouterr().out
    forward_of(network_of(NETWORKS[0]), "auto", CPU.model_copy(update={"device": "cuda"}))
    assert not capsys.readouterr().out


def test_large_images_are_those_of_pytorch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "LARGE", 64 * 64)
    network = network_of(NETWORKS[0])
    forward = OpenVino(network, CPU)
    images = [torch.rand(1, 3, 64, width) for width in (32, 96, 64, 128, 96)]
    with torch.inference_mode():
        for image in images:
            np.testing.assert_allclose(forward(image), network(image), atol=2e-3)


def drop_engines_and_be_signalled() -> None:
    """Run in a process of its own: engines dropped in the order and by the threads in which stages may drop them."""
    network, image = network_of(NETWORKS[0]), torch.rand(1, 3, 32, 32)
    used = [OpenVino(network, CPU) for _ in range(2)]
    for engine in used:
        engine(image)
    used.pop(0)
    dropping = threading.Thread(target=used.clear)
    dropping.start()
    dropping.join()
    del engine
    signal.signal(signal.SIGCHLD, lambda *_: print("signalled", flush=True))
    subprocess.run([sys.executable, "-c", ""], check=True)
    print("ended")


def test_signals_arrive_after_engines_are_dropped() -> None:
    # Where every engine had an OpenVINO core of its own, this process ended at once, by a segmentation fault.
    here = Path(__file__).parent
    script = "import faulthandler; faulthandler.enable(); import test_engines as t; t.drop_engines_and_be_signalled()"
    path = os.pathsep.join(map(str, (here, here.parent)))
    run = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert run.stdout.split() == ["signalled", "ended"], run.stderr
    assert run.returncode == 0, run.stderr


def test_a_network_that_is_not_carried_over_is_refused() -> None:
    with pytest.raises(ValueError, match=r"predict\.engine=openvino: expected .* take predict\.engine=pytorch"):
        forward_of(Constant(), "openvino", CPU)


def test_another_device_is_refused() -> None:
    elsewhere = CPU.model_copy(update={"device": "cuda"})
    with pytest.raises(ValueError, match=r"expected compute\.device=cpu, found cuda"):
        forward_of(network_of(NETWORKS[0]), "openvino", elsewhere)
