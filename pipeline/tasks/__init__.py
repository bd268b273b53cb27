"""What can be learned: each task knows its networks, its training samples, what one step is, and its score."""

from __future__ import annotations

from typing import Any

from pipeline.tasks.classification import Classification
from pipeline.tasks.reconstruction import Reconstruction
from pipeline.tasks.segmentation import Segmentation
from pipeline.tasks.translation import Translation

TASKS: dict[str, type[Any]] = {
    "segmentation": Segmentation,
    "reconstruction": Reconstruction,
    "translation": Translation,
    "classification": Classification,
}
"""Tasks by the name that train.task gives them."""
