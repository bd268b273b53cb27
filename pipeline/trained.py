"""A trained run's folder, which rebuilds itself: settings, network, weights, thresholds; no config file needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import device
from pipeline.config import ComputeSettings, Config, PredictSettings
from pipeline.inference import Predictor, predictor_of
from pipeline.instances import Thresholds
from pipeline.networks import Network, build_network
from pipeline.networks.autoencoders import Autoencoder
from pipeline.networks.classifier import Classifier, build_classifier
from pipeline.outputs import Outputs
from pipeline.records.seen import RECORD as THRESHOLDS
from pipeline.records.seen import Seen

BEST, FROZEN, MODEL, STAIN = "best.pt", "config.yaml", "model.json", "stain.json"
IMAGE_CHANNELS = 3
IMAGE_BORDER = 16
"""Pixels by which images are mirrored at their edges before a network makes another image of them."""


@dataclass(frozen=True)
class TrainedRun:
    """What stands in data/train/<run>/; config is frozen: every automatic choice replaced by what was taken."""

    folder: Path
    config: Config
    outputs: Outputs
    weights: Path

    def predictor(self, settings: PredictSettings, compute: ComputeSettings) -> Predictor:
        """Load the best weights, weights only, onto a device.

        Raises ValueError where the run has no weights yet.
        """
        torch.set_num_threads(compute.threads)
        network = self.network().to(compute.device).eval()
        if compute.channels_last:
            network.to(memory_format=torch.channels_last)
        border = IMAGE_BORDER if self.outputs.is_image else 0
        return predictor_of(network, self.outputs.activation, self.config.train.intensity, settings, compute, border)

    def network(self) -> Network | Classifier:
        """Build the network and load the best weights, weights only. Raises ValueError where there are none yet."""
        if not self.weights.exists():
            raise ValueError(
                f"{self.weights}: expected the weights of a trained run, found nothing; run `make train` first"
            )
        build = build_classifier if self.outputs.is_class else build_network
        network = build(self.config.train.network, IMAGE_CHANNELS, len(self.outputs.channels), pretrained=False)
        network.load_state_dict(torch.load(self.weights, map_location="cpu", weights_only=True)["network"])
        if isinstance(network, Autoencoder):
            network.use = self.config.train.reconstruction.code
        return network

    def compute_here(self, wanted: ComputeSettings) -> ComputeSettings:
        """Return the run's own device and numbers where this machine has them and nothing else is asked for.

        A run trained elsewhere is predicted with what this machine has.
        """
        here = device.freeze(wanted)
        same = here.device == self.config.compute.device and wanted.precision == "auto"
        return (
            here.model_copy(update={"precision": self.config.compute.precision})
            if same and _has(self.config, here)
            else here
        )

    def chosen(self) -> dict[str, Any]:
        """Return thresholds.json: the thresholds, and the cases that trained or chose them.

        A missing file is an error, never a default.
        """
        file = self.folder / THRESHOLDS
        if not file.exists():
            raise ValueError(
                f"{file}: expected the thresholds tuned at the end of training, found nothing; run `make train`"
            )
        return dict(json.loads(file.read_text(encoding="utf-8")))

    @property
    def seen(self) -> Seen:
        """What took part in training or choosing, here or in a run that this one stands on."""
        return Seen.of_record(self.chosen(), self.config.dataset)

    def thresholds(self) -> Thresholds:
        """Return the parameters of the post-processing."""
        return Thresholds(**self.chosen()["thresholds"])


def _has(config: Config, here: ComputeSettings) -> bool:
    return config.compute.precision != "bf16" or device.has_native_bf16(here.device)


def open_run(folder: Path) -> TrainedRun:
    """Open a run's folder. Raises ValueError where it is none, naming the runs there are beside it."""
    import yaml

    if not (folder / FROZEN).exists() or not (folder / MODEL).exists():
        runs = sorted(file.parent.name for file in folder.parent.glob(f"*/{MODEL}"))
        raise ValueError(
            f"{folder}: expected a trained run ({FROZEN}, {MODEL}, {BEST}), found none; "
            + (f"there are the runs {', '.join(runs)}" if runs else "make one with `make train`")
        )
    config = Config.model_validate(yaml.safe_load((folder / FROZEN).read_text(encoding="utf-8")))
    model = json.loads((folder / MODEL).read_text(encoding="utf-8"))
    return TrainedRun(folder, config, Outputs.from_dict(model), folder / BEST)


def named_run(run: str) -> TrainedRun:
    """Open a run as a user names it: its folder, or its name below data/train/."""
    folder = Path(run)
    return open_run(folder if (folder / MODEL).exists() else Path("data/train") / run)
