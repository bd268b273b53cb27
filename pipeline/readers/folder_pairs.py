"""Images and label rasters in folders, joined on the file's stem, never by sorted position.

    images/a.png with masks/a.png           (image, img, imgs, tissue_images; mask, labels, annotations, gt, ...)
    train/images/a.png with train/masks/a_mask.png
    anywhere/a.png with anywhere/a_mask.png (_label, _seg, _anno, _gt, ...)
    test/a.png, images_test/a.png, test/images/a.png: images without a label

Suffixes may differ between image and mask. The case id is the path without these folders and without what every case
shares, its slashes written as `__`: images/P1/a.png is `P1__a`. A file sample_submission.csv is the competition's.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Set
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.config import IngestSettings
from pipeline.readers.layout import RawCase, RawDataset, case_ids, stem_of
from pipeline.records.decode import IMAGE_SUFFIXES
from pipeline.records.findings import Fault, Finding
from pipeline.records.raw import RawFolder

IMAGE_FOLDERS = {"images", "image", "img", "imgs", "tissue_images", "images_train", "train_images"}
MASK_FOLDERS = {
    "masks", "mask", "labels", "label", "annotations", "annotation", "gt", "ground_truth", "groundtruth",
    "masks_train", "train_masks", "labels_train", "train_labels",
}  # fmt: skip
TRAIN_FOLDERS = {"train", "training"}
TEST_FOLDERS = {"test", "testing", "images_test", "test_images", "image_test", "test_image"}
MASK_ENDING = re.compile(
    r"[_-](masks?|labels?|seg|segmentation|anno|annotation|gt|groundtruth|instances?)$", re.IGNORECASE
)
SAMPLE = "sample_submission.csv"
ONE = "rename or delete the others"
"""What to do where a stem has several files."""


@dataclass(frozen=True)
class _File:
    """key: the path without its role's folder and without the file's suffix, which image and mask share."""

    name: str
    role: str
    key: str
    test: bool


def recognises(raw: RawFolder) -> bool:
    """Whether at least one image has a label of its name."""
    files = _files(raw)
    masks = {key for file in files if file.role == "mask" for key in _keys_of_mask(file)}
    return any(file.role == "image" and not file.test and file.key in masks for file in files)


def read(raw: RawFolder, settings: IngestSettings) -> RawDataset:
    """Pair every image with its label; what has no partner, or several, is a fault."""
    files = _files(raw)
    images: dict[str, list[_File]] = defaultdict(list)
    for file in files:
        if file.role == "image":
            images[file.key].append(file)
    masks: dict[str, list[_File]] = defaultdict(list)
    for file in files:
        if file.role == "mask":
            masks[next((key for key in _keys_of_mask(file) if key in images), file.key)].append(file)
    # Folders of the parts are left out, as test ids must be those of the sample submission.
    names = _names(images.keys() | masks.keys(), {file.key for file in files if file.test and file.role == "image"})
    cases, faults, findings = [], [], []
    for key in sorted(images.keys() | masks.keys()):
        own_images, own_masks, case_id = images.get(key, []), masks.get(key, []), names[key]
        test = any(file.test for file in (*own_images, *own_masks))
        if not own_images:
            where = own_masks[0].name
            faults.append(Fault(case_id, "missing image", where, "an image of the same stem", "none", "add or delete"))
        elif len(own_images) > 1:
            found = ", ".join(file.name for file in own_images)
            faults.append(Fault(case_id, "repeated case id", own_images[0].name, "one image of the stem", found, ONE))
        elif test:
            if own_masks:
                detail = f"{own_masks[0].name}: labels of test images are left unread"
                findings.append(Finding(case_id, "noted", "label of a test image", detail))
            cases.append(RawCase(case_id, own_images[0].name, labelled=False))
        elif len(own_masks) > 1:
            found = ", ".join(file.name for file in own_masks)
            faults.append(Fault(case_id, "several masks", own_images[0].name, "one label of the stem", found, ONE))
        else:
            raster = own_masks[0].name if own_masks else None
            cases.append(RawCase(case_id, own_images[0].name, labelled=True, raster=raster))
    samples = [name for name in raw.files() if PurePosixPath(name).name == SAMPLE]
    sample = min(samples, key=lambda name: (name.count("/"), name), default=None)
    return RawDataset(tuple(cases), tuple(faults), tuple(findings), sample)


def _names(keys: Set[str], test: Set[str]) -> dict[str, str]:
    """Case ids; where parts number their images alike, the test images keep their names, which a submission needs."""
    parts = TRAIN_FOLDERS | TEST_FOLDERS
    names, of_test = case_ids(keys, parts), case_ids(test, parts)
    apart = of_test | {key: key.replace("/", "__") for key in keys - test}
    if all(names[key] == name for key, name in of_test.items()) or len({*apart.values()}) < len(apart):
        return names
    return apart


def _files(raw: RawFolder) -> list[_File]:
    """Every image file with its role: by its folder, else by the ending of its stem."""
    names = [name for name in raw.files() if name.lower().endswith(IMAGE_SUFFIXES)]
    stems = {stem_of(name) for name in names}
    return [_file(name, stems) for name in names]


def _file(name: str, stems: set[str]) -> _File:
    *folders, stem = stem_of(name).split("/")
    lowered = [folder.lower() for folder in folders]
    test = any(folder in TEST_FOLDERS for folder in lowered)
    in_masks = [at for at, folder in enumerate(lowered) if folder in MASK_FOLDERS]
    in_images = [at for at, folder in enumerate(lowered) if folder in IMAGE_FOLDERS]
    base = MASK_ENDING.sub("", stem)
    beside_its_image = base != stem and "/".join([*folders, base]) in stems
    role = "mask" if in_masks or beside_its_image else "image"
    left_out = (in_masks or in_images)[-1:]
    kept = [folder for at, folder in enumerate(folders) if at not in left_out]
    return _File(name, role, "/".join([*kept, base if beside_its_image and not in_masks else stem]), test)


def _keys_of_mask(file: _File) -> tuple[str, ...]:
    """The keys of the image that a mask may belong to, the exact one first."""
    return tuple(dict.fromkeys((file.key, MASK_ENDING.sub("", file.key))))
