"""The commands as --help lists them: their names, what each does, and the module here that knows the rest."""

from __future__ import annotations

from pipeline.stages import STAGES

GROUPS = (
    ("stages, in their order", "stage", {stage.name: stage.summary for stage in STAGES}),
    (
        "numbers to choose by",
        "numbers",
        {
            "cv": "train one run a fold, and score every case by the run that never saw it",
            "compare": "set two runs beside each other on the same cases, with intervals",
            "ablation": "train one segmenter without and with each remedy",
            "transfer": "score a run on another data set, without and with each stain normaliser",
            "peers": "train other libraries' segmenters on the same images and compare",
            "bench": "measure speed against other libraries, as ratios",
            "score": "score a submission against a solution, as the competition does",
        },
    ),
    (
        "Kaggle",
        "kaggle",
        {
            "data": "put a competition's files into data/raw/",
            "kaggle-submit": "hand in submission.csv with Kaggle's client",
            "kaggle-notebook": "pack a trained run as a notebook for code competitions, without network",
        },
    ),
    (
        "codes of a trained autoencoder",
        "codes",
        {
            "encode": "store images as codes of a trained autoencoder",
            "decode": "bring back the images that encode stored",
            "generate": "draw images from a trained variational autoencoder",
        },
    ),
    (
        "settings",
        "settings",
        {"config": "print the resolved settings", "summary": "print the network's table of layers"},
    ),
)
"""Title of a group, its module, and its commands with what they do."""

MODULES = {name: module for _, module, commands in GROUPS for name in commands}
SUMMARIES = {name: summary for _, _, commands in GROUPS for name, summary in commands.items()}
