"""nnU-Net in two dimensions, planned and trained by its own code, its schedule fitted to the time.

Objects as it is used for instances: three classes, background, core and border (the pixels of an object with a side at
another object or at none); predicted cores are numbered and grown into the border about them. Planned for a memory of
MEMORY gigabytes instead of 8, its own setting, without which a batch on a few cores leaves some dozens of steps. Epochs
of 250 steps become EPOCHS that share the time; its learning rate falls to 0 over them. Predicted with its own tiles and
mirroring, from the last weights.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from pipeline.segmenters.trial import SMALLEST, Trial, run, without_small

DATASET, NUMBER, PLANS = "Dataset001_exchanged", 1, "nnUNetPlans"
MEMORY, EPOCHS, VALIDATION_STEPS = 2.0, 20, 1
CORE, BORDER = 1, 2
REACH = 3.0
"""Pixels that a core grows at most."""


def segment(trial: Trial) -> None:
    """Lay the images out as it wants them, plan, train, choose the smallest object, and write the masks."""
    folders = {name: trial.work / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    shutil.rmtree(trial.work)
    # Read when the library is imported.
    os.environ |= {name: str(folder) for name, folder in folders.items()}
    # Planning takes the number of loaders for one of threads, which cannot be 0.
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": str(trial.threads), "nnUNet_compile": "f"}
    from nnunetv2.experiment_planning import plan_and_preprocess_api as planning

    torch.manual_seed(trial.seed)
    np.random.seed(trial.seed)  # noqa: NPY002 (its augmentation takes NumPy's global state)
    lay_out(trial, folders["nnUNet_raw"] / DATASET)
    planning.extract_fingerprints([NUMBER], num_processes=trial.threads)
    planning.plan_experiments([NUMBER], gpu_memory_target_in_gb=MEMORY)
    planning.preprocess([NUMBER], PLANS, configurations=("2d",), num_processes=(trial.threads,))
    os.environ |= {"nnUNet_n_proc_DA": "0"}
    torch.set_num_threads(trial.threads)
    preprocessed = folders["nnUNet_preprocessed"] / DATASET
    split = [{"train": trial.names("train"), "val": trial.names("validation")}]
    (preprocessed / "splits_final.json").write_text(json.dumps(split), encoding="utf-8")

    spare = trainer(preprocessed)
    spare.on_train_start()
    spare.on_train_epoch_start()
    fits = trial.steps_that_fit(lambda: spare.train_step(next(spare.dataloader_train)))
    final = trainer(preprocessed)
    final.num_epochs = min(EPOCHS, max(1, fits // (2 * VALIDATION_STEPS)))
    final.num_val_iterations_per_epoch = VALIDATION_STEPS
    final.num_iterations_per_epoch = max(1, fits // final.num_epochs - VALIDATION_STEPS)
    planned = final.configuration_manager
    trial.facts |= {
        "epochs": final.num_epochs, "steps": final.num_epochs * final.num_iterations_per_epoch,
        "batch": planned.batch_size, "patch": list(planned.patch_size),
    }  # fmt: skip
    with trial.clock("trained"):
        final.run_training()
    classes = predictor(final)
    found = [grown(classes(trial.image("validation", name))) for name in trial.names("validation")]
    settings = [{"smallest": size} for size in SMALLEST]
    chosen = trial.choose(settings, lambda at, setting: without_small(found[at], **setting))
    trial.write_masks(lambda image: without_small(grown(classes(image)), **chosen))


def lay_out(trial: Trial, folder: Path) -> None:
    """Write images, labels of three classes and dataset.json in the library's layout."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    count = 0
    for part in ("train", "validation"):
        for name in trial.names(part):
            shutil.copyfile(trial.data / part / "images" / f"{name}.png", folder / "imagesTr" / f"{name}_0000.png")
            Image.fromarray(classes_of(trial.label(part, name))).save(folder / "labelsTr" / f"{name}.png")
            count += 1
    described = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "core": CORE, "border": BORDER},
        "numTraining": count,
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
    }
    (folder / "dataset.json").write_text(json.dumps(described), encoding="utf-8")


def classes_of(label: np.ndarray) -> np.ndarray:
    """Turn object ids into background, core and border, (height, width) uint8; an object that is all border is core."""
    edge = np.zeros(label.shape, bool)
    around = np.pad(label, 1)
    for rows, columns in ((0, 1), (2, 1), (1, 0), (1, 2)):
        edge |= label != around[rows : rows + label.shape[0], columns : columns + label.shape[1]]
    border = edge & (label > 0)
    inside = np.zeros(int(label.max(initial=0)) + 1, bool)
    inside[label[~edge]] = True
    border &= inside[label]
    return np.where(border, BORDER, np.where(label > 0, CORE, 0)).astype(np.uint8)


def grown(classes: np.ndarray) -> np.ndarray:
    """Number the cores and give each border pixel within REACH the id of the nearest; (height, width) int32."""
    cores, count = ndimage.label(classes == CORE)
    if not count:
        return np.zeros(classes.shape, np.int32)
    distance, nearest = ndimage.distance_transform_edt(cores == 0, return_indices=True)
    taken = (classes == BORDER) & (distance <= REACH)
    return np.where(taken, cores[tuple(nearest)], cores).astype(np.int32)


def trainer(preprocessed: Path) -> Any:
    """Return the library's trainer of the 2-D configuration and of the one fold there is."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans, described = (
        json.loads((preprocessed / f"{name}.json").read_text(encoding="utf-8")) for name in (PLANS, "dataset")
    )
    plans["continue_training"] = False
    return nnUNetTrainer(plans, "2d", 0, described, torch.device("cpu"))


def predictor(trained: Any) -> Any:
    """Return what turns an RGB image into its classes, with the library's tiles and mirroring."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    made = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    made.initialize_from_trained_model_folder(trained.output_folder_base, (0,), "checkpoint_final.pth")

    def classes(image: np.ndarray) -> np.ndarray:
        planes = image.transpose(2, 0, 1)[:, np.newaxis].astype(np.float32)
        return np.asarray(made.predict_single_npy_array(planes, {"spacing": (999, 1, 1)}))[0]

    return classes


if __name__ == "__main__":
    run(segment, ("nnunetv2", "torch", "numpy"))
