"""One reader a layout on disk; each only translates names, ingest decodes and checks."""

from __future__ import annotations

from pipeline.readers import (
    dsb2018,
    folder_pairs,
    glas,
    hubmap2020,
    hubmap2022,
    hubmap2023,
    idc,
    image_pairs,
    images,
    nifti,
    pannuke,
    pcam,
    polygons,
    slides,
)
from pipeline.readers.layout import RawCase, RawDataset, Reader
from pipeline.records.raw import RawFolder

READERS = {
    "dsb2018": Reader(
        dsb2018.recognises,
        dsb2018.read,
        "stage1_train/<ImageId>/images/*.png and stage1_train/<ImageId>/masks/*.png (or stage1_train.zip)",
    ),
    "hubmap2020": Reader(
        hubmap2020.recognises,
        hubmap2020.read,
        "train.csv (id,encoding) and HuBMAP-20-dataset_information.csv beside train/<id>.tiff",
    ),
    "hubmap2022": Reader(
        hubmap2022.recognises,
        hubmap2022.read,
        "train.csv with id, organ, img_height, img_width, pixel_size, rle, and train_images/<id>.tiff",
    ),
    "hubmap2023": Reader(
        hubmap2023.recognises,
        hubmap2023.read,
        "polygons.jsonl and tile_meta.csv beside train/<id>.tif",
    ),
    "glas": Reader(
        glas.recognises,
        glas.read,
        "Grade.csv with train_1.bmp, train_1_anno.bmp, testA_1.bmp, ... beside it",
    ),
    "pcam": Reader(
        pcam.recognises,
        pcam.read,
        "train_labels.csv (id,label), train/<id>.tif and test/<id>.tif: patches with a class each",
    ),
    "pannuke": Reader(
        pannuke.recognises,
        pannuke.read,
        "fold1/images.npy, masks.npy and types.npy, nested as they come, for each fold",
    ),
    "idc": Reader(
        idc.recognises,
        idc.read,
        "<patient>/<0 or 1>/<patient>_idx5_x<X>_y<Y>_class<0 or 1>.png: patches with a class each",
    ),
    "folder_pairs": Reader(
        folder_pairs.recognises,
        folder_pairs.read,
        "images/<name>.png and masks/<name>.png (also labels/ or annotations/), or <name>.png beside <name>_mask.png",
        every_image=True,
    ),
    "slides": Reader(
        slides.recognises,
        slides.read,
        "slides/<name>.svs (or .ndpi, .mrxs, .dcm, ...) with annotations/<name>.geojson (QuPath), .xml (Aperio) or "
        "masks/<name>.tif; plain TIFFs too in slides/",
    ),
    "polygons": Reader(
        polygons.recognises,
        polygons.read,
        "<name>.tif with <name>.xml (MoNuSeg) or <name>.geojson (QuPath), or images with one .json of COCO's",
        every_image=True,
    ),
    "image_pairs": Reader(
        image_pairs.recognises,
        image_pairs.read,
        "input/<name>.png and target/<name>.png (also source/ and target/, trainA/ and trainB/), "
        "or pairs/<name>.png with the input in its left half and the target in its right",
        every_image=True,
    ),
    "nifti": Reader(
        nifti.recognises,
        nifti.read,
        "images/<name>.nii.gz and masks/<name>.nii.gz (also labels/, imagesTr/ and labelsTr/): volumes, plane by plane",
    ),
    "images": Reader(
        images.recognises,
        images.read,
        "images without labels, <stratum>/<name>.png or <name>.png; only where ingest.layout=images asks for it",
        only_by_name=True,
        every_image=True,
    ),
}
"""Tried in this order where ingest.layout is auto: first what a name or a table tells at once."""

__all__ = ["READERS", "RawCase", "RawDataset", "Reader", "layout_of"]


def layout_of(raw: RawFolder, wanted: str) -> str:
    """Name the layout of a raw folder; wanted is auto or a name. Raises ValueError, saying what was found."""
    names = [wanted] if wanted != "auto" else list(READERS)
    for name in names:
        if (wanted == name or not READERS[name].only_by_name) and READERS[name].recognises(raw):
            return name
    files = raw.files()
    found = f"{len(files)} files ({', '.join(files[:5])}{', ...' if len(files) > 5 else ''})" if files else "no files"
    expected = "".join(f"\n  {name}: {READERS[name].looks_like}" for name in names)
    raise ValueError(f"{raw.folder}: found {found}, which is none of the expected layouts:{expected}")
