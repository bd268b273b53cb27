"""The learned normaliser: a trained run (autoencoder, U-Net or Pix2Pix) behind the interface of the classical ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pipeline.config import ComputeSettings, Config
from pipeline.records.files import file_hash, write_bytes, write_json
from pipeline.stains.normaliser import Normalised, Normaliser, Status, checked, tissue_and_status
from pipeline.stains.optical_density import WHITE, is_dark, sample_pixels

if TYPE_CHECKING:
    from pipeline.inference import AnyPredictor
    from pipeline.trained import TrainedRun


class Learned(Normaliser):
    """Applies a run that makes images (task reconstruction or translation); its training fixed the reference.

    An image without stained tissue (fluorescence among them), or with pen marks, keeps its pixels: no network was
    taught what to do with it. One with little tissue (low_tissue) is normalised, since nothing has to be measured.
    """

    method = "learned"

    def __init__(self, trained: TrainedRun, compute: ComputeSettings | None = None) -> None:
        if not trained.outputs.is_image:
            raise ValueError(
                f"normalise.run: expected a run that makes images, found {trained.folder}, which was trained for "
                f"{trained.config.train.task}; train one with task reconstruction or translation"
            )
        self.trained = trained
        self.compute = trained.compute_here(compute or ComputeSettings())
        self.predict_: AnyPredictor | None = None

    @classmethod
    def of_run(cls, folder: Path, compute: ComputeSettings | None = None) -> Self:
        """Open a run's folder. Raises ValueError where it is none, makes no images, or restores them and no more."""
        from pipeline.trained import open_run

        trained = open_run(folder)
        if trained.outputs.is_image and trained.restores:
            raise ValueError(
                f"normalise.run: expected a run that changes stain, found {folder}, which was trained to restore "
                f"images ({', '.join(f'train.corruption.{name}' for name in trained.restores)}), with no pairs and no "
                f"train.corruption.restain; apply it with `predict`, or train a normaliser: on pairs, or with "
                f"train.corruption.restain"
            )
        return cls(trained, compute)

    def fit(self, images: Iterable[np.ndarray]) -> Self:
        """Load the weights; the images are left unread, since the reference was learned in training."""
        self.predict_ = self.trained.predictor(self.trained.config.predict, self.compute)
        return self

    def normalise(self, image: np.ndarray, pooled: np.ndarray | None = None, prefer_pooled: bool = False) -> Normalised:
        """As in Normaliser; an image has no statistics, so that pooled ones are not looked at.

        Raises ValueError, too, where the network gives values that are no numbers.
        """
        from pipeline.outputs import to_pixels

        if self.predict_ is None:
            self.fit(())
        assert self.predict_ is not None
        pixels = sample_pixels(checked(image))
        # The colours of some fluorescence are those of stained tissue.
        status: Status = "background" if is_dark(pixels) else tissue_and_status(pixels, WHITE)[0]
        if status in ("background", "degenerate"):
            return Normalised(image.copy(), status, "identity")
        return Normalised(to_pixels(self.predict_(image)), status, "")

    def save(self, file: Path, **further: Any) -> None:
        """Write <stem>.json with the run's settings and <stem>.pt with its weights: enough without the run's folder."""
        weights = self.trained.weights
        write_bytes(file.with_suffix(".pt"), weights.read_bytes())
        content = {
            "method": self.method,
            "version": self.version,
            "weights_sha256": file_hash(weights),
            "model": self.trained.outputs.as_dict(),
            "config": self.trained.config.model_dump(mode="json"),
        }
        write_json(file, content | further)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read what save wrote. Raises ValueError where the two files do not belong together, or are something else."""
        from pipeline.outputs import Outputs
        from pipeline.trained import TrainedRun

        weights = file.with_suffix(".pt")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["method"] != cls.method or content["version"] != cls.version:
                raise ValueError(f"method {content['method']!r}, version {content['version']!r}")
            if file_hash(weights) != content["weights_sha256"]:
                raise ValueError(f"{weights.name} with other weights")
            config, outputs = Config.model_validate(content["config"]), Outputs.from_dict(content["model"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file}: expected a learned normaliser of version {cls.version} with {weights.name}, found {error}; "
                "run stage normalise again"
            ) from error
        return cls(TrainedRun(file.parent, config, outputs, weights))
