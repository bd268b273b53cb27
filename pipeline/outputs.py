"""What a network's channels mean: decided from the settings and the labels, stored beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pipeline.config import IMAGE_TASKS, Config
from pipeline.metrics.stain import compare
from pipeline.metrics.summary import score_case
from pipeline.records.case import IGNORED, Case
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_label
from pipeline.targets import CLASS, VECTORS, cell_classes, cell_means, channels_of


@dataclass(frozen=True)
class Outputs:
    """The channels of a network.

    target: as train.target names it (never auto), image, or class; channels: a name each; activation:
    sigmoid (each channel alone), softmax (the channels of a pixel, or image, sum to 1) or identity (an image as it is);
    label_kind: what labels and what is made of the channels hold: instance (an id an object), semantic (class ids),
    coarse (the same, by squares), image (RGB) or class (one an image); the last channels of objects that begin with
    CLASS hold the probability that an object is of that class; paired: of images, whether targets were images of their
    own, None where that was not recorded, and of anything else; cell: of coarse labels, the pixels along the squares
    that have one class each.
    """

    target: str
    channels: tuple[str, ...]
    activation: str
    label_kind: str
    paired: bool | None = None
    cell: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return what model.json holds."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Outputs:
        """Take back what as_dict gave."""
        return cls(**content | {"channels": tuple(content["channels"])})

    @property
    def has_objects(self) -> bool:
        """Whether masks hold objects rather than classes."""
        return self.label_kind == "instance"

    @property
    def object_classes(self) -> tuple[str, ...]:
        """Names of the classes that objects are told apart by; empty where they are not."""
        return tuple(name.removeprefix(CLASS) for name in self.class_channels)

    @property
    def class_channels(self) -> tuple[str, ...]:
        """The channels of those classes, which are the last ones."""
        return tuple(name for name in self.channels if name.startswith(CLASS)) if self.has_objects else ()

    @property
    def is_image(self) -> bool:
        """Whether an image is made, not a mask."""
        return self.label_kind == "image"

    @property
    def is_class(self) -> bool:
        """Whether an image gets one class, not a mask."""
        return self.label_kind == "class"

    @property
    def directions(self) -> tuple[int, int] | None:
        """The channels whose values point down and right, which turn with the image; None where there are none."""
        if "down" not in self.channels:
            return None
        return self.channels.index("down"), self.channels.index("right")

    @property
    def of_objects(self) -> list[int]:
        """The channels that mean something on objects alone: where in it a pixel lies, and its class."""
        of_class = set(self.class_channels)
        return [place for place, name in enumerate(self.channels) if name in VECTORS or name in of_class]

    def foreground(self, maps: np.ndarray) -> np.ndarray:
        """Return the probability of any foreground, (height, width), of the (channels, height, width) of a mask."""
        return 1.0 - maps[0] if self.activation == "softmax" else maps[0]

    def by_cell(self, maps: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bring maps (channels, height, width) and truth to what is scored: one place a square of a coarse label."""
        return (maps, truth) if self.cell is None else (cell_means(maps, self.cell), cell_classes(truth, self.cell))

    def score(self, truth: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        """Score one mask, or image, against its truth: the columns of per_case.csv from height on."""
        if self.is_image:
            return compare(mask, truth)
        if self.cell is not None:
            true, predicted = (cell_classes(raster, self.cell) for raster in (truth, mask))
            return score_case(true, predicted, "coarse") | dict(zip(("height", "width"), truth.shape, strict=True))
        if self.has_objects:
            return score_case(truth, mask, "instance")
        if self.activation == "softmax":
            return score_case(truth, mask, "semantic", len(self.channels) - 1)
        return score_case(np.where(truth == IGNORED, IGNORED, truth > 0).astype(np.uint16), mask, "semantic")

    @classmethod
    def foreseen(cls, config: Config) -> Outputs:
        """Decide as far as settings alone do: of masks and classes, labels have the last word (see of).

        Raises ValueError where an image would not come out as it went in.
        """
        if config.train.task in IMAGE_TASKS:
            _refuse_other_images(config)
            return cls("image", ("red", "green", "blue"), image_activation(config), "image")
        if config.train.task == "classification":
            return cls("class", ("0", "1"), "softmax", "class")
        target = config.train.target
        if target == "auto":
            target = "offsets" if config.augment.dimensions == 2 else "binary"
        kind = "semantic" if target in ("binary", "classes") else "instance"
        return cls(target, channels_of(target), "softmax" if target == "classes" else "sigmoid", kind)

    @classmethod
    def of(
        cls, config: Config, cases: Sequence[Case], paths: Paths, labelled: Sequence[Case] | None = None
    ) -> Outputs:  # fmt: skip
        """Decide the channels from the settings and the labels there are.

        cases: those that are learned from; labelled: those whose class rasters say how many classes there are, by
        default the same.
        Raises ValueError where the target does not fit the labels, or an image would not come out as it went in.
        """
        if config.train.task in IMAGE_TASKS:
            return replace(cls.foreseen(config), paired=any(case.label_kind == "image" for case in cases))
        if config.train.task == "classification":
            return cls("class", _class_names(cases), "softmax", "class")
        kinds = {case.label_kind for case in cases if case.label}
        target = config.train.target
        classes = 1
        if len(kinds) > 1:
            raise ValueError(f"expected labels of one kind, found {', '.join(sorted(kinds))}; set ingest.label_kind")
        if not kinds & {"instance", "semantic", "coarse"}:
            found = ", ".join(sorted({case.label_kind for case in cases}))
            raise ValueError(
                f"train.task: segmentation needs labels that are masks, found cases with {found}; take "
                "train.task=reconstruction or translation for images, classification for classes"
            )
        if kinds == {"semantic"} and target in ("auto", "classes"):
            counted = cases if labelled is None else labelled
            labels = (read_label(paths.ingest / case.label) for case in counted if case.label)
            classes = max(int(label[label != IGNORED].max(initial=0)) for label in labels)
        if target == "auto":
            target = "offsets" if kinds == {"instance"} else "classes" if classes > 1 else "binary"
        if kinds == {"semantic"} and target not in ("binary", "classes"):
            raise ValueError(
                f"train.target: {target} needs labels with one id an object, found class rasters; "
                f"take train.target=binary or classes, or tell ingest that they are objects: ingest.label_kind=instance"
            )
        if config.augment.dimensions == 3 and kinds != {"semantic"}:
            raise ValueError(
                f"augment.planes={config.augment.planes}: expected labels of class ids, found {', '.join(kinds)}; set "
                "augment.planes=1"
            )
        if kinds == {"coarse"} and target != "binary":
            raise ValueError(f"train.target: {target} needs labels of pixels, found those of squares; take binary")
        if kinds == {"instance"} and target == "classes":
            raise ValueError(
                "train.target: classes needs class rasters, found object ids; take offsets, boundary or binary"
            )
        (kind,) = kinds
        channels = channels_of(target, classes)
        if kind == "instance":
            channels += tuple(f"{CLASS}{name}" for name in _object_classes(cases))
        cells = {case.cell for case in cases if case.label}
        if len(cells) > 1:
            raise ValueError(f"expected squares of one size in all labels, found {sorted(map(str, cells))} pixels")
        return cls(target, channels, "softmax" if target == "classes" else "sigmoid", kind, cell=cells.pop())


def _object_classes(cases: Sequence[Case]) -> tuple[str, ...]:
    """The classes of objects, in order; none where there are fewer than two to tell apart.

    Raises ValueError where some labels tell the classes of their objects and others do not.
    """
    labelled = [case for case in cases if case.label]
    without = [case.case_id for case in labelled if case.classes is None]
    if without and any(case.classes for case in labelled):
        raise ValueError(
            f"expected labels that all tell the classes of their objects, found {len(without)} that do not "
            f"({', '.join(without[:5])}); run ingest again, or leave them out with ingest.exclude"
        )
    names = sorted({name for case in labelled for name in case.classes or ()})
    return tuple(names) if len(names) > 1 else ()


def _refuse_other_images(config: Config) -> None:
    """Refuse settings by which an image would come out at another size, or in other light, than it went in."""
    network, problems = config.train.network, []
    if not network.padded:
        problems.append("train.network.padded: expected true, found false, which loses a border of the image")
    if network.output_stride != 1:
        problems.append(
            f"train.network.output_stride: expected 1, found {network.output_stride}, which makes an image that many "
            "times smaller"
        )
    if config.train.intensity != "stored":
        problems.append(
            f"train.intensity: expected stored, found {config.train.intensity}, which changes the light of what goes "
            "in, and not of the target that it is compared with"
        )
    if problems:
        raise ValueError(
            f"train.task={config.train.task}: an image must come out at the size and in the light it went in:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )


def _class_names(cases: Sequence[Case]) -> tuple[str, ...]:
    """The classes of cases, in order. Raises ValueError where labels are no classes, or all of one."""
    kinds = sorted({case.label_kind for case in cases})
    if kinds != ["class"]:
        raise ValueError(
            f"train.task: classification needs one class an image, found cases with labels of the kind "
            f"{', '.join(kinds)}; take train.task=segmentation for masks, reconstruction or translation for images"
        )
    names = tuple(sorted({str(case.class_name) for case in cases}))
    if len(names) < 2:
        raise ValueError(
            f"train.task: classification needs images of at least two classes to learn from, found only {names[0]} in "
            f"the parts train and validation; add cases, or change seed or split.*_share"
        )
    return names


def image_activation(config: Config) -> str:
    """Name what brings the output of a network that makes images to [0, 1]."""
    from pipeline.networks.autoencoders import activation_of

    return activation_of(config.train.network.name.partition(":")[2])


def to_pixels(values: np.ndarray) -> np.ndarray:
    """Turn (3, height, width) float in [0, 1], numbers all, into (height, width, 3) uint8 RGB."""
    return np.ascontiguousarray(np.rint(values.transpose(1, 2, 0) * 255.0).astype(np.uint8))
