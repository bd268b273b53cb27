"""What runs a network in use: PyTorch, or OpenVINO on processors, which fuses layers and keeps them in the cache."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import nn

from pipeline.config import ComputeSettings
from pipeline.networks import Network
from pipeline.networks.inside import NO_MARGINS, Margins

Forward = Callable[..., torch.Tensor]
"""(N, 3, height, width) float32 in [0, 1] to (N, ...) float32 logits; with margins to take off, or with noise for a
code that is drawn."""

PROBE = 128
"""Side in pixels of the image on which both engines are compared before OpenVINO is used."""
APART = 0.03
"""Largest mean difference between the engines' outputs, as a share of their range, that is put down to rounding."""
LARGE = 1 << 20
"""Pixels of an input above which OpenVINO compiles for its very shape, a fifth of a second each: made for any shape, it
takes 0.5 GB more at windows of slides."""


def forward_of(network: nn.Module, engine: str, compute: ComputeSettings) -> Forward:
    """Return what maps inputs to logits by an engine: pytorch, openvino, or auto.

    auto is openvino on processors where it gives what PyTorch gives, and pytorch elsewhere. OpenVINO takes the weights
    as they are now: a network that is still trained goes by PyTorch. compute: as frozen. Raises ValueError for openvino
    on another device than the CPU, and where it does not give what PyTorch gives.
    """
    in_pytorch = _in_pytorch(network, compute)
    if engine == "pytorch" or (engine == "auto" and compute.device != "cpu"):
        return in_pytorch
    check_engine(engine, compute.device)
    try:
        return _in_openvino(network, compute, in_pytorch)
    except ValueError as error:
        if engine != "auto":
            raise
        print(f"noted: PyTorch runs the network; {error}")
        return in_pytorch


def check_engine(engine: str, device: str) -> None:
    """Raise ValueError for openvino on another device than the CPU."""
    if engine == "openvino" and device != "cpu":
        raise ValueError(
            f"predict.engine=openvino: expected compute.device=cpu, found {device}; take predict.engine=pytorch"
        )


def _in_openvino(network: nn.Module, compute: ComputeSettings, in_pytorch: Forward) -> Forward:
    compiled = OpenVino(network, compute)
    apart = difference(in_pytorch, compiled)
    if apart > APART:
        raise ValueError(
            f"predict.engine=openvino: expected what PyTorch gives, found outputs that differ by {apart:.1%} of their "
            "range on average; take predict.engine=pytorch"
        )
    return compiled


def difference(first: Forward, second: Forward) -> float:
    """Compare two engines on one image of noise and edges: mean absolute difference over the range of the first."""
    generator = torch.Generator().manual_seed(0)
    # Of another size than the image that a conversion follows: what it took for constant shows.
    coarse = torch.rand((1, 3, PROBE // 8, PROBE // 16), generator=generator)
    image = nn.functional.interpolate(coarse, scale_factor=16.0, mode="nearest")
    with torch.inference_mode():
        one, other = first(image), second(image)
    return float((one - other).abs().mean() / (one.max() - one.min()).clamp_min(1e-6))


def _in_pytorch(network: Any, compute: ComputeSettings) -> Forward:
    device = torch.device(compute.device).type
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(compute.precision)

    def forward(inputs: torch.Tensor, off: Margins = NO_MARGINS, **drawn: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, dtype, enabled=dtype is not None):
            logits: torch.Tensor = network(inputs, **drawn) if off == NO_MARGINS else network.inside(inputs, off)
        return logits.float()

    return forward


class _Inside(nn.Module):
    """A network whose call is that of its inside."""

    def __init__(self, network: nn.Module, off: Margins) -> None:
        super().__init__()
        self.network, self.off = network, off

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits with the margins taken off."""
        return cast(Network, self.network).inside(inputs, self.off)


@cache
def _core() -> Any:
    """The process's one OpenVINO core.

    Its plugin gives the thread that loads it another stack for signals, and takes it away with the core, from whichever
    thread: the next signal, such as that a loader worker has ended, would find no stack.
    """
    import openvino

    return openvino.Core()


class OpenVino:
    """A network as OpenVINO compiles it, whole or inside; same arguments and result as Forward.

    The network is traced by its own call, or by that of its inside; it must be one that takes images and nothing
    beside. Raises ValueError where it cannot be converted.
    """

    def __init__(self, network: nn.Module, compute: ComputeSettings) -> None:
        self.network = network
        self.settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if compute.precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": compute.threads,
            "PERFORMANCE_HINT": "LATENCY",
            # It would hold each process to the first of the cores, those of several workers all to the same.
            "ENABLE_CPU_PINNING": False,
            # What is compiled for a shape is kept for the next image of it: of all by default, gigabytes at images of
            # hundreds of sizes. A fifth of that is enough for a dozen sizes.
            "CPU_RUNTIME_CACHE_CAPACITY": 1000,
        }
        # The whole, and one inside: a conversion takes longer than to look at a tile.
        self.models = {NO_MARGINS: self._converted(NO_MARGINS)}
        # One at a time, each takes as much memory as its activations: for images of any shape (None), or for one shape.
        self._made_for: tuple[tuple[int, ...] | None, Margins] | None = None
        self._made: Any = None

    def _converted(self, off: Margins) -> Any:
        """The network, or its inside, for inputs of any shape."""
        from openvino import Layout
        from openvino.frontend import FrontEndManager, OpConversionFailure
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
        from openvino.preprocess import PrePostProcessor

        traced = self.network if off == NO_MARGINS else _Inside(self.network, off)
        # Large enough to leave some of; a multiple of what coarse levels make one pixel of.
        example = torch.zeros((1, 3, *(PROBE + -(-sum(sides) // PROBE) * PROBE for sides in (off[:2], off[2:]))))
        try:
            # The converter's own steps, without its front door, which reports to its makers over the network.
            with torch.inference_mode(), warnings.catch_warnings():
                # Of sizes that it takes for constants; the comparison at another size shows where that matters.
                warnings.simplefilter("ignore", torch.jit.TracerWarning)
                # That tracing is deprecated in favour of torch.export, which is another way into OpenVINO.
                warnings.simplefilter("ignore", FutureWarning)
                # Its own check runs the network twice more on the same image, and says nothing of another size.
                decoder = TorchScriptPythonDecoder(
                    traced, example_input=(example,), trace_kwargs={"check_trace": False}
                )
            front_end = FrontEndManager().load_by_framework("pytorch")
            model = front_end.convert(front_end.load(decoder))
        except (RuntimeError, OpConversionFailure) as error:
            raise ValueError(
                f"predict.engine=openvino: expected a network that it can convert, found {type(self.network).__name__}"
                f": {str(error).strip().splitlines()[0]}; take predict.engine=pytorch"
            ) from error
        # Channels last, as images lie in memory: they are handed over as they are.
        steps = PrePostProcessor(model)
        steps.input().tensor().set_layout(Layout("NHWC"))
        steps.input().model().set_layout(Layout("NCHW"))
        return steps.build()

    def __call__(self, inputs: torch.Tensor, off: Margins = NO_MARGINS, **drawn: torch.Tensor) -> torch.Tensor:
        """Run the network on (N, 3, height, width) float32."""
        if 0 in off and off != NO_MARGINS:
            # At the edges of an image, each another network to be converted, for the few tiles that lie there.
            return off.of(self(inputs))
        if drawn:
            raise ValueError("predict.engine=openvino: expected no code that is drawn; take predict.engine=pytorch")
        images = inputs.movedim(1, -1).contiguous()
        return torch.from_numpy(self._compiled(tuple(images.shape), off)(images.numpy())[0])

    def _compiled(self, shape: tuple[int, ...], off: Margins) -> Any:
        """The network for inputs of a shape, (N, height, width, 3)."""
        kept = None if off == NO_MARGINS and shape[0] * shape[1] * shape[2] <= LARGE else shape
        if (kept, off) != self._made_for:
            self._made = None
            if off not in self.models:
                self.models = {NO_MARGINS: self.models[NO_MARGINS], off: self._converted(off)}
            model = self.models[off].clone()
            if kept is not None:
                model.reshape(list(kept))
            self._made = _core().compile_model(model, "CPU", self.settings)
            self._made_for = kept, off
        return self._made
