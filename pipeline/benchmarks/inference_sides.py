"""Sides of the contests of tiled inference: the product's predictor, MONAI's sliding windows, and the bare pass.

All turn one image, (height, width, 3) uint8, into probabilities, (channels, height, width) float32, with the same
weights. The bare pass has one tile in memory as the network takes it, as large as the product takes it, and maps it as
often as the image has pixels for. The whole image at once, in float32, is what the others are held against.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from pipeline import device
from pipeline.config import PredictSettings, load_config
from pipeline.engines import forward_of
from pipeline.inference import predictor_of
from pipeline.networks import Network
from pipeline.trained import open_run

ROI, WINDOWS, OVERLAP = 256, 4, 0.25
"""MONAI's windows, how many go through together, and the share by which they overlap (its default)."""
Variant = Literal[
    "openvino", "pytorch", "pytorch in float32", "monai", "monai in bf16", "bare openvino", "bare pytorch",
    "whole image",
]  # fmt: skip


def prepare(image: str, run: str, threads: int, variant: Variant) -> Callable[[], np.ndarray]:
    """Return one pass over the image of a .npy file: to its probabilities, or of the bare pass to its last tile's.

    run: the folder of a trained run.
    """
    torch.set_num_threads(threads)
    picture = np.load(image, mmap_mode="r")
    trained = open_run(Path(run))
    model = cast(Network, trained.network().eval())
    if variant.startswith("monai"):
        return _with_monai(model, picture, bf16=variant != "monai")
    model.to(memory_format=torch.channels_last)
    if variant == "whole image":
        return _at_once(model, picture)
    precision = "fp32" if variant.endswith("in float32") else "auto"
    asked = load_config(None, ["compute.device=cpu", f"compute.precision={precision}", f"compute.threads={threads}"])
    compute = device.freeze(asked.compute)
    settings = PredictSettings(engine=_engine(variant))
    if variant.startswith("bare"):
        return _bare(forward_of(model, settings.engine, compute), picture, settings, model)
    predict = predictor_of(model, trained.outputs.activation, "stored", settings, compute, makes_images=False)
    return lambda: predict(np.asarray(picture))


def mask(out: str, **task: Any) -> None:
    """Write where the first channel is above one half, (height, width) bool, as a .npy file."""
    np.save(out, prepare(**task)()[0] > 0.5)


def _engine(variant: str) -> Literal["pytorch", "openvino"]:
    return "openvino" if variant.endswith("openvino") else "pytorch"


def _with_monai(model: torch.nn.Module, picture: np.ndarray, *, bf16: bool) -> Callable[[], np.ndarray]:
    from monai.inferers import sliding_window_inference

    if bf16:
        model.to(memory_format=torch.channels_last)

    def forward(windows: torch.Tensor) -> torch.Tensor:
        if not bf16:
            return torch.as_tensor(model(windows))
        with torch.autocast("cpu", torch.bfloat16):
            return torch.as_tensor(model(windows.contiguous(memory_format=torch.channels_last))).float()

    def once() -> np.ndarray:
        with torch.no_grad():
            logits = sliding_window_inference(_inputs(picture), ROI, WINDOWS, forward, overlap=OVERLAP)
        return torch.sigmoid(torch.as_tensor(logits))[0].numpy()

    return once


def _inputs(picture: np.ndarray) -> torch.Tensor:
    """Turn (height, width, 3) uint8 into what networks take: (1, 3, height, width) float32 in [0, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255.0


def _at_once(model: torch.nn.Module, picture: np.ndarray) -> Callable[[], np.ndarray]:
    @torch.inference_mode()
    def once() -> np.ndarray:
        return torch.sigmoid(torch.as_tensor(model(_inputs(picture))))[0].numpy()

    return once


def _bare(
    forward: Callable[..., torch.Tensor], picture: np.ndarray, settings: PredictSettings, model: Network
) -> Callable[[], np.ndarray]:
    height, width = picture.shape[:2]
    side = min(height, width, round(settings.batch**0.5 * (settings.tile + 2 * model.reach))) // model.cell * model.cell
    tile = _inputs(picture[:side, :side]).contiguous(memory_format=torch.channels_last)
    times = max(1, round(height * width / side**2))

    @torch.inference_mode()
    def once() -> np.ndarray:
        for _ in range(times):
            last = forward(tile)
        return last.numpy()[0]

    return once


def versions() -> str:
    """Say which versions take part."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "monai", "openvino"))
