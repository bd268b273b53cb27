"""A trained run's folder, which rebuilds itself: settings, network, weights, thresholds; no config file needed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline import device
from pipeline.config import ComputeSettings, Config, PredictSettings
from pipeline.corruption import damage
from pipeline.inference import AnyPredictor, Ensemble, predictor_of
from pipeline.instances import Thresholds
from pipeline.networks import Network, build_network
from pipeline.networks.autoencoders import Autoencoder
from pipeline.networks.classifier import Classifier, build_classifier
from pipeline.outputs import Outputs
from pipeline.records.case import Case, read_cases
from pipeline.records.files import file_hash
from pipeline.records.paths import Paths
from pipeline.records.seen import RECORD as THRESHOLDS
from pipeline.records.seen import Seen

BEST, FROZEN, MODEL, STAIN = "best.pt", "config.yaml", "model.json", "stain.json"
NEEDED = (FROZEN, MODEL, BEST)
"""Files without which a folder is no trained run."""
IMAGE_CHANNELS = 3


@dataclass(frozen=True)
class TrainedRun:
    """What stands in data/train/<run>/; config is frozen: every automatic choice replaced by what was taken."""

    folder: Path
    config: Config
    outputs: Outputs
    weights: Path

    @property
    def home(self) -> Path:
        """data/train/ where the run is below it, else the folder that it is in; where its members are looked for."""
        return _home(self.folder)

    @property
    def members(self) -> list[TrainedRun]:
        """The runs whose maps this one averages; none where it is a network of its own."""
        return [open_run(self.home / name) for name in self.config.train.members]

    @property
    def digest(self) -> str:
        """Hash of all that a prediction takes from the run: of its files, and of those of its members."""
        import hashlib

        names = (FROZEN, MODEL, BEST, THRESHOLDS, STAIN, Path(STAIN).with_suffix(".pt").name)
        files = [file for name in names if (file := self.folder / name).exists()]
        hashes = [*map(file_hash, files), *(member.digest for member in self.members)]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    @property
    def content(self) -> str:
        """Hash of the weights that make its maps: its own, or those of its members."""
        import hashlib

        if members := self.members:
            return hashlib.sha256("".join(member.content for member in members).encode()).hexdigest()
        return file_hash(self.weights)

    def _refuse_other_members(self) -> None:
        """Raise ValueError where members were trained anew since the ensemble's thresholds were tuned on their maps."""
        file = self.folder / THRESHOLDS
        told = self.chosen().get("members", {}) if file.exists() else {}
        names = zip(self.config.train.members, self.members, strict=True)
        if changed := [name for name, member in names if told.get(name, member.content) != member.content]:
            raise ValueError(
                f"{file}: expected thresholds tuned on the maps of its members, found {', '.join(changed)} trained "
                "anew since; make the ensemble again, `make train` with its settings"
            )

    def predictor(self, settings: PredictSettings, compute: ComputeSettings) -> AnyPredictor:
        """Load the best weights, weights only, onto a device; of every member where it has members.

        Raises ValueError where the run has no weights yet, and where its members are others than they were.
        """
        if members := self.members:
            self._refuse_other_members()
            return Ensemble([member.predictor(settings, compute) for member in members])
        torch.set_num_threads(compute.threads)
        device.repeat_bytes(compute)
        network = self.network().to(compute.device).eval()
        device.lay_out(network, compute)
        return predictor_of(
            network, self.outputs.activation, self.config.train.intensity, settings, compute,
            makes_images=self.outputs.is_image, name=str(self.weights), directions=self.outputs.directions,
            window=self.config.augment.window,
        )  # fmt: skip

    @property
    def takes_volumes(self) -> bool:
        """Whether the network looks at volumes, not at images."""
        return self.config.augment.dimensions == 3 or any(member.takes_volumes for member in self.members)

    def network(self) -> Network | Classifier:
        """Build the network and load the best weights, weights only. Raises ValueError where there are none."""
        if self.config.train.members:
            raise ValueError(f"{self.folder}: expected a network, found an ensemble; name one of its members")
        if not self.weights.exists():
            raise ValueError(
                f"{self.weights}: expected the weights of a trained run, found nothing; run `make train` first"
            )
        network = build_for(self.config, self.outputs, pretrained=False)
        try:
            network.load_state_dict(torch.load(self.weights, map_location="cpu", weights_only=True)["network"])
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
            # What PyTorch says of it goes on for pages, and advises to run what the file holds.
            raise ValueError(
                f"{self.weights}: expected the weights of {self.folder / FROZEN}, found a file that is damaged or of "
                f"another network ({type(error).__name__}); train again, or bring the file here again"
            ) from error
        if isinstance(network, Autoencoder):
            network.use = self.config.train.reconstruction.code
        return network

    @property
    def restores(self) -> tuple[str, ...]:
        """What the run was trained to take away, where stain is nothing that it was trained to change.

        Empty for what can be a stain normaliser: a run trained on pairs, on images stained anew, or spoilt by nothing.
        """
        corruption = self.config.train.corruption
        if corruption.restain or self.outputs.paired:
            return ()
        # Where pairs were not recorded, noise tells nothing: a denoising normaliser of pairs sees it too.
        unrecorded = self.outputs.paired is None
        return tuple(name for name in damage(corruption) if not (unrecorded and name == "noise"))

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
        try:
            return {**json.loads(file.read_text(encoding="utf-8"))}
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
            raise ValueError(
                f"{file}: expected the record of a training in JSON, found {error}; train again"
            ) from error

    @property
    def learned_from(self) -> set[str]:
        """Ids of the cases that the weights of the run, or of its members, were trained on."""
        return {*self.chosen()["trained_on"]}.union(*(member.learned_from for member in self.members))

    @property
    def seen(self) -> Seen:
        """What took part in training or choosing, here or in a run that this one stands on."""
        record = self.chosen()
        if "groups" not in record:
            record["groups"] = self._groups_of([*record["trained_on"], *record["chosen_on"]["cases"]])
        return Seen.of_record(record, self.config.dataset)

    def seen_among(self, cases: Sequence[Case], config: Config, of_split: Mapping[str, str]) -> str:
        """Say in words which cases of config's data set this run has seen; nothing where it saw none of them.

        of_split: group in config's split by case id. A split that looks past given groups does so within its data set:
        a patient seen elsewhere was seen. One that looks past pixels looks past the groups that they made.
        """
        by_group = config.split.groups in ("auto", "given") or self.config.dataset != config.dataset
        found = of_split if config.split.groups in ("auto", "pixels") else {}
        return self.seen.told(config.dataset, cases, by_group, found)

    def _groups_of(self, case_ids: Sequence[str]) -> list[str]:
        """Groups of cases as they were ingested: records of earlier versions do not name them."""
        file = Paths.of(self.config, self.home.parents[1]).cases
        wanted = set(case_ids)
        cases = read_cases(file) if file.exists() else []
        return sorted({case.group for case in cases if case.group is not None and case.case_id in wanted})

    def thresholds(self) -> Thresholds:
        """Return the parameters of the post-processing."""
        try:
            return Thresholds(**self.chosen()["thresholds"])
        except (KeyError, TypeError) as error:
            file, found = self.folder / THRESHOLDS, f"{type(error).__name__}: {error}"
            raise ValueError(f"{file}: expected thresholds of segmentation, found {found}; train again") from error


def _has(config: Config, here: ComputeSettings) -> bool:
    return config.compute.precision != "bf16" or device.gains_by_bf16(here.device)


def build_for(config: Config, outputs: Outputs, *, pretrained: bool) -> Network | Classifier:
    """Build the network that the settings name, for the channels of outputs; pretrained: as of build_network."""
    of_maps = partial(build_network, dimensions=config.augment.dimensions)
    build = build_classifier if outputs.is_class else of_maps
    return build(config.train.network, IMAGE_CHANNELS, len(outputs.channels), pretrained=pretrained)


def open_run(folder: Path) -> TrainedRun:
    """Open a run's folder. Raises ValueError where it is none, naming the trained runs there are."""
    import yaml

    if not (folder / FROZEN).exists() or not (folder / MODEL).exists():
        runs = _runs_around(folder)
        raise ValueError(
            f"{folder}: expected a trained run ({', '.join(NEEDED)}), found none; "
            + (f"there are the trained runs {', '.join(runs)}" if runs else "make one with `make train`")
        )
    config = Config.model_validate(yaml.safe_load((folder / FROZEN).read_text(encoding="utf-8")))
    model = json.loads((folder / MODEL).read_text(encoding="utf-8"))
    return TrainedRun(folder, config, Outputs.from_dict(model), folder / BEST)


def _runs_around(folder: Path) -> list[str]:
    """Names of the runs that have weights: all below data/train/ where the folder is, else those beside it."""
    home = _home(folder)
    found = (file.parent for file in home.rglob(BEST))
    return sorted(run.relative_to(home).as_posix() for run in found if all((run / name).exists() for name in NEEDED))


def _home(folder: Path) -> Path:
    """Return data/train/ where the folder is below it, else what it is in."""
    return next((parent for parent in folder.parents if parent.parts[-2:] == ("data", "train")), folder.parent)


def check_seen(
    config: Config, cases: Sequence[Case], of_split: Mapping[str, str], runs: Sequence[TrainedRun]
) -> dict[str, list[str]]:
    """Refuse test cases that any of the runs learned from, was chosen by, or stands on another run that did.

    of_split: group in config's split by case id, so that another crop of a field that was seen is refused too. Returns
    what metrics.json says of runs of which that cannot be told: nothing, or the sentences as seen_unchecked.
    """
    told = [(run.folder, run.seen_among(cases, config, of_split)) for run in runs]
    if used := [f"{words}, by the run in {folder}" for folder, words in told if words]:
        raise ValueError(
            "expected test cases that took no part in training or in choosing thresholds, found "
            + "; ".join(used)
            + ". Where the split changed since, run `make train` again; a run that saw these patients elsewhere cannot "
            "be scored on them. Where groups of two data sets only share their names, rename those of one"
        )
    doubts = [f"{run.config.run}: {doubt}" for run in runs if (doubt := run.seen.doubt(config.dataset, cases))]
    return {"seen_unchecked": doubts} if doubts else {}


def named_run(run: str) -> TrainedRun:
    """Open a run as a user names it: its folder, or its name below data/train/."""
    folder = Path(run)
    return open_run(folder if (folder / MODEL).exists() else Path("data/train") / run)
