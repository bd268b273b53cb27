"""Autoencoders: images to a code at each place and back; linear, convolutional, denoising, sparse, variational.

A place of the code stands for 2^depth x 2^depth pixels, so that an image of any size has a code of its own size and
one network codes them all.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks import Network
from pipeline.networks.unet import Normalisation, _normalisation, enlarged

Kind = Literal["linear", "convolutional", "denoising", "sparse", "variational"]

KINDS: tuple[Kind, ...] = ("linear", "convolutional", "denoising", "sparse", "variational")

LARGEST_LOG_VARIANCE = 10.0
"""Bound of a variational code's log-variance, both ways: exp(10) is far from overflow, exp(-10) far from a division."""
STARTING_LOG_VARIANCE = -4.0
"""A variational code starts with little noise, so that the decoder learns from it before the noise grows."""
STARTING_OUTPUT = 0.1
"""Share of their usual size at which the weights of the output start: a grey image rather than noise."""
ACTIVE_VARIANCE = 0.01
"""Variance of a latent's mean over samples above which it carries something (Burda 2016, arXiv:1509.00519)."""


class Code(NamedTuple):
    """What an encoder makes of images (N, C, H, W): float32, (N, code, h, w), with h x w as Autoencoder.code_size says.

    A tuple and no frozen dataclass, since Fabric rebuilds the outputs of a module under mixed precision.
    """

    values: Tensor
    """What the decoder takes: sparse, in [0, 1]; variational, a sample in training, in use as Autoencoder.use says."""
    mean: Tensor | None = None
    """Means of the latents (variational)."""
    log_variance: Tensor | None = None
    """Natural logarithm of their variances, within +-LARGEST_LOG_VARIANCE (variational)."""


def reparameterise(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """Return z = mu + sigma * eps, differentiable in mu and sigma (Kingma and Welling 2013, arXiv:1312.6114, 2.4).

    All of one shape; log_variance: ln(sigma^2); noise: eps ~ N(0, 1).
    """
    return mean + torch.exp(0.5 * log_variance) * noise


def active_share(values: Tensor, threshold: float) -> float:
    """Share of the units of a code, over samples, channels and places, whose activation is above the threshold."""
    return float((values > threshold).float().mean())


def active_latents(means: Tensor) -> int:
    """Count the latents whose mean varies over samples (and places) by more than ACTIVE_VARIANCE.

    means: (N, code, ...). 0 of them are left where the posterior has collapsed onto the standard normal.
    """
    varying = means.detach().float().movedim(1, 0).flatten(start_dim=1).var(dim=1, correction=0) > ACTIVE_VARIANCE
    return int(varying.sum())


def activation_of(kind: str) -> str:
    """Name what brings the output of a kind of network to an image in [0, 1]: identity (then clamped) or sigmoid."""
    return "identity" if kind == "linear" else "sigmoid"


class Autoencoder(Network):
    """Encoder, a code of `code` numbers at each place, decoder; (N, channels, H, W) to logits (N, outputs, H, W).

    Margin 0, stride 1; every height and width. The image is enlarged as the U-Net does it, to multiples of 2^depth.
    What lies beyond the border of a map repeats its last row and column, so that borders are not darker.

    linear: one strided convolution of kernel 2^(depth + 1) and one transposed: the kernels of neighbouring places
    overlap by half, so that no seams of blocks need show, and nothing bends, so that the output is affine in the image
    (what principal components of overlapping blocks do). Its output is the image itself, not a logit.
    convolutional: `depth` times a strided convolution of kernel 4, mirrored by transposed ones, which at kernel 4 and
    stride 2 leave no checkerboard; widths double from `width` at full size to width * 2^depth.
    denoising: the same, with a share `dropout` of the features dropped after every level but the last.
    sparse: the same; the code passes a sigmoid.
    variational: the same; the code is a Gaussian at each place (Kingma and Welling 2013, arXiv:1312.6114). Random in
    training; in use its mean, or a sample where `use` says so.

    activation: what brings the output to [0, 1], as activation_of says.
    Raises ValueError for an unknown kind, and for denoising without dropout or another kind with it.
    """

    def __init__(
        self,
        kind: Kind,
        channels: int,
        outputs: int,
        width: int = 32,
        depth: int = 4,
        code: int = 64,
        normalisation: Normalisation = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"autoencoder: expected one of {', '.join(KINDS)}, found {kind!r}")
        if kind == "denoising" and not dropout:
            raise ValueError(
                "train.network.dropout: expected more than 0 for autoencoder:denoising, found 0; give it, e.g. 0.1"
            )
        if kind != "denoising" and dropout:
            raise ValueError(
                f"train.network.dropout: expected 0 for autoencoder:{kind}, found {dropout:g}; leave it out, or take "
                f"autoencoder:denoising, which is the same network with dropout"
            )
        self.kind, self.depth, self.channels_of_code = kind, depth, code
        self.cell, self.reach = 2**depth, 4 * 2**depth
        self.activation = activation_of(kind)
        self.use: Literal["mean", "sample"] = "mean"
        if kind == "linear":
            self.encoder: nn.Module = _LinearEncoder(channels, code, depth)
            self.decoder: nn.Module = _LinearDecoder(code, channels, outputs, depth)
            return
        widths = [width * 2**level for level in range(depth + 1)]
        head = _convolution(widths[-1], 2 * code if kind == "variational" else code, bias=True)
        output = nn.Conv2d(widths[0], outputs, 3)
        bias = normalisation == "none"
        self.encoder = nn.Sequential(
            *_block(_convolution(channels, widths[0], bias), normalisation),
            *(layer for level in range(depth) for layer in _downward(widths, level, normalisation, dropout)),
            head,
        )
        self.decoder = nn.Sequential(
            *_block(_convolution(code, widths[-1], bias), normalisation),
            *(layer for level in reversed(range(depth)) for layer in _upward(widths, level, normalisation, dropout)),
            output,
        )
        _initialise(self, linear=(head, output))
        with torch.no_grad():
            output.weight *= STARTING_OUTPUT
            if kind == "variational":
                cast(Tensor, head.bias)[code:] = STARTING_LOG_VARIANCE

    def code_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the code of an image of height x width: ceil(side / 2^depth), at least 2.

        Instance and batch statistics need more than one place.
        """
        side = 2**self.depth
        return max(2, -(-height // side)), max(2, -(-width // side))

    @property
    def draws(self) -> bool:
        """Whether its code is a sample in use."""
        return self.kind == "variational" and self.use == "sample"

    def forward(
        self, image: Tensor, with_code: bool = False, noise: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Code]:
        """Logits for an image in [0, 1]; with_code: and the code that they were decoded from; noise: as for encode."""
        code = self.encode(image, noise)
        logits = self.decode(code.values, *image.shape[-2:])
        return (logits, code) if with_code else logits

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Code:
        """Code of images (N, channels, H, W) in [0, 1].

        noise: (N, code, *code_size(H, W)) from N(0, 1), what a sample is drawn by; by default from torch's own stream.
        """
        rows, columns = self.code_size(*image.shape[-2:])
        # Around 0, so that the middle grey level is what zeros stand for.
        centred = 2 * enlarged(image, rows * 2**self.depth, columns * 2**self.depth) - 1
        features = self.encoder(centred)
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        if self.kind == "sparse":
            return Code(torch.sigmoid(features))
        if self.kind != "variational":
            return Code(features)
        mean, free = features.chunk(2, dim=1)
        # Bent, not cut: a gradient leads back from everywhere.
        log_variance = LARGEST_LOG_VARIANCE * torch.tanh(free / LARGEST_LOG_VARIANCE)
        if not (self.training or self.draws):
            return Code(mean, mean, log_variance)
        drawn = torch.randn_like(mean) if noise is None else noise
        return Code(reparameterise(mean, log_variance, drawn), mean, log_variance)

    def decode(self, code: Tensor, height: int, width: int) -> Tensor:
        """Logits (N, outputs, height, width) of a code (N, code, h, w).

        Raises ValueError where the code is not one of an image of that size.
        """
        expected = (self.channels_of_code, *self.code_size(height, width))
        if tuple(code.shape[1:]) != expected:
            raise ValueError(
                f"autoencoder:{self.kind}: expected a code of {'x'.join(map(str, expected))} numbers for an image of "
                f"{height}x{width} pixels, found {'x'.join(map(str, code.shape[1:]))}; give the size of the image that "
                f"was coded, and the network that coded it"
            )
        return self.decoder(code)[..., :height, :width]

    def sample(self, count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Logits (count, outputs, height, width) of codes drawn from N(0, 1); the same seed gives the same.

        Raises ValueError for a network that is not variational: nothing says where its codes lie.
        """
        if self.kind != "variational":
            raise ValueError(
                f"autoencoder:{self.kind}: expected a variational autoencoder to draw images from; train one with "
                f"train.network.name=autoencoder:variational"
            )
        shape = (count, self.channels_of_code, *self.code_size(height, width))
        noise = torch.randn(shape, generator=generator, device=generator.device)
        return self.decode(noise.to(next(self.parameters()).device), height, width)


class _LinearEncoder(nn.Module):
    def __init__(self, channels: int, code: int, depth: int) -> None:
        super().__init__()
        self.around = 2 ** (depth - 1)
        self.projection = nn.Conv2d(channels, code, 2 ** (depth + 1), stride=2**depth)
        _start_from_cosines(self.projection, channels, depth, scale=1.0)
        nn.init.zeros_(cast(Tensor, self.projection.bias))

    def forward(self, image: Tensor) -> Tensor:
        return self.projection(F.pad(image, (self.around,) * 4, mode="reflect"))


class _LinearDecoder(nn.Module):
    def __init__(self, code: int, channels: int, outputs: int, depth: int) -> None:
        super().__init__()
        # One place more on every side gives the pixels at the border as many kernels as all others; it is cut off.
        self.projection = nn.ConvTranspose2d(
            code, outputs, 2 ** (depth + 1), stride=2**depth, padding=2 ** (depth - 1) + 2**depth
        )
        if outputs == channels:
            _start_from_cosines(self.projection, channels, depth, scale=0.5)  # the encoder sees 2 * image - 1
        nn.init.constant_(cast(Tensor, self.projection.bias), 0.5)  # the middle grey level, as a logit of 0 is

    def forward(self, code: Tensor) -> Tensor:
        return self.projection(F.pad(code, (1, 1, 1, 1), mode="replicate"))


@torch.no_grad()
def _start_from_cosines(projection: nn.Conv2d | nn.ConvTranspose2d, channels: int, depth: int, scale: float) -> None:
    """Put the lowest frequencies of the cosine transform of each block into the middle of the kernels, 0 around them.

    Principal components of blocks of an image are nearly these (Ahmed 1974, doi:10.1109/T-C.1974.223784). Starting
    there is worth 7 to 9 dB after 300 steps, and the overlapping rest of the kernels learns to hide the blocks' edges.
    """
    side = 2**depth
    basis = cosines(projection.weight.shape[0], channels, side)
    middle = slice(side // 2, side // 2 + side)
    projection.weight[: len(basis)] = 0.0
    projection.weight[: len(basis), :, middle, middle] = scale * basis


def cosines(count: int, channels: int, side: int) -> Tensor:
    """Return up to `count` orthonormal blocks (count, channels, side, side): waves from low to high, in each channel.

    All of them, channels * side^2, where count is larger.
    """
    wanted = -(-count // channels)
    places = itertools.product(range(min(side, wanted)), repeat=2)
    rows, columns = zip(*sorted(places, key=lambda place: (sum(place), place))[:wanted], strict=True)
    angles = (torch.arange(side) + 0.5) * math.pi / side
    waves = torch.cos(torch.arange(side)[:, None] * angles) * math.sqrt(2 / side)
    waves[0] *= math.sqrt(0.5)
    blocks = torch.einsum("fh,fw,ab->fabhw", waves[list(rows)], waves[list(columns)], torch.eye(channels))
    return blocks.flatten(0, 1)[:count]


def _convolution(inward: int, outward: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(inward, outward, 3, padding=1, padding_mode="replicate", bias=bias)


def _block(convolution: nn.Module, normalisation: Normalisation) -> list[nn.Module]:
    outputs = cast(int, convolution.out_channels)
    return [convolution, _normalisation(normalisation, outputs), nn.ReLU(inplace=True)]


def _downward(widths: list[int], level: int, normalisation: Normalisation, dropout: float) -> list[nn.Module]:
    """Halve the map and go from a level's width to the next."""
    convolution = nn.Conv2d(
        widths[level], widths[level + 1], 4, stride=2, padding=1, padding_mode="replicate", bias=normalisation == "none"
    )
    return [*_block(convolution, normalisation), nn.Dropout(dropout)]


def _upward(widths: list[int], level: int, normalisation: Normalisation, dropout: float) -> list[nn.Module]:
    """Double the map and go back to a level's width; nothing is dropped from the finest, which makes the output.

    One row and column more on every side give border pixels as many taps as all others; they are cut off again, but
    for a single one at the finest level, which the output's convolution takes off.
    """
    convolution = nn.ConvTranspose2d(
        widths[level + 1], widths[level], 4, stride=2, padding=3 if level else 2, bias=normalisation == "none"
    )
    return [nn.ReplicationPad2d(1), *_block(convolution, normalisation), nn.Dropout(dropout if level else 0.0)]


def _initialise(network: nn.Module, linear: tuple[nn.Module, ...]) -> None:
    """Draw weights that keep the variance of the features (He 2015); biases are 0."""
    for module in network.modules():
        if isinstance(module, nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=(2 / (4 * module.in_channels)) ** 0.5)  # 4 of 16 taps meet a pixel
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if module in linear else "relu")
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
