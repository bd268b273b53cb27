"""Whole segmenters of other libraries, each by its own code, on one exchanged folder of images and labels.

A script here is run by the interpreter of its library's environment (pipeline/benchmarks/peers/), with the arguments of
trial.py, which is all of ours that it imports beside the definition of average precision:
    python -P pipeline/segmenters/<peer>.py --data <folder> --out <folder> --minutes 45 --threads 2 --seed 1
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parent


@dataclass(frozen=True)
class Segmenter:
    """A library as it takes part: how the table calls it, and what its script does, in a sentence."""

    shown: str
    recipe: str

    def as_dict(self) -> dict[str, str]:
        """Return what metrics.json holds."""
        return {"shown": self.shown, "recipe": self.recipe}


SEGMENTERS = {
    "stardist": Segmenter(
        "StarDist",
        "32 rays on a grid of 2 x 2, percentiles 1 and 99.8, the notebook's augmentation, Adam 3e-4 that falls on a "
        "plateau, best weights by validation loss, thresholds by optimize_thresholds",
    ),
    "cellpose": Segmenter(
        "Cellpose",
        "from scratch, grey, mean diameter 30 with rescaling, train_seg with AdamW 0.005, decay in the last 50 of 120 "
        "epochs; cell probability, flow threshold and diameter chosen on validation",
    ),
    "segmentation_models_pytorch": Segmenter(
        "segmentation-models-pytorch",
        "its binary example: U-Net, ResNet-34 from scratch, Dice loss, Adam 2e-4 with cosine decay, float32; crops of "
        "256, flips and turns; connected components, threshold and smallest object chosen on validation",
    ),
    "monai": Segmenter(
        "MONAI",
        "its 2-D tutorial: residual U-Net of 16 to 256 channels, Dice loss, Adam 1e-3, crops about nuclei and "
        "elsewhere, turns, best weights by validation Dice, sliding windows; connected components, likewise",
    ),
    "nnunet": Segmenter(
        "nnU-Net",
        "2-D, planned by itself for 2 GB, its trainer and augmentation with epochs fitted to the time, three classes: "
        "background, core and border of 1 pixel; cores grown into borders, smallest object chosen on validation",
    ),
}
"""Segmenters by name, which is that of the script here and of the environment."""
