"""The page: the same bytes, nothing from outside, well formed, everything escaped, and no crash over a missing file."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.config import Config
from pipeline.metrics.summary import per_case_table, score_case, summarise
from pipeline.records.case import Case, write_cases
from pipeline.records.files import write_json, write_text
from pipeline.records.findings import Finding, write_findings
from pipeline.records.paths import Paths
from pipeline.records.rasters import write_png
from pipeline.reporting.page import build_page

ROOT = Path(__file__).parents[2]
ReadPage = Callable[[str], Any]
"""Parses a page; the fixture assert_sound also checks it."""


def test_a_finished_run(finished_run: tuple[Paths, Config], assert_sound: ReadPage) -> None:
    paths, config = finished_run
    page = assert_sound(build_page(paths, config))
    scores = json.loads((paths.reports / "metrics.json").read_text())["test"]
    for name in ("dice", "ap", "aji"):
        assert f"{scores[name]['mean']:.3f} {scores[name]['low']:.3f}–{scores[name]['high']:.3f}" in page.text
    assert "12 test images from 12 groups" in page.text
    assert "No group lies in two parts." in page.text and "9 of 14 test images" in page.text
    assert "1 case was excluded" in page.text and "size mismatch" in page.text
    for heading in ("Worst", "Median", "Best", "Training", "Provenance", "How to make this again"):
        assert heading in page.text
    assert page.tags["dialog"] == 1 and page.values("class").count("open") == 12
    assert "Not there" not in page.text


def test_errors_are_counted_as_in_the_scores(finished_run: tuple[Paths, Config], read_page: ReadPage) -> None:
    page = read_page(build_page(*finished_run))
    # Each of the 12 images holds one missed, one spurious, one merged and one split object by construction.
    assert "What went wrong with 60 objects 12 missed 20.0 % of true objects" in page.text
    assert "1 missed 1 spurious 1 merged 1 split of 5 objects" in page.text


def test_same_bytes_in_another_process(finished_run: tuple[Paths, Config]) -> None:
    paths, config = finished_run
    script = (
        "import sys; from pathlib import Path; from pipeline.config import Config;"
        "from pipeline.records.paths import Paths;"
        "from pipeline.reporting.page import build_page; config = Config(dataset='disks', run='disks');"
        "sys.stdout.buffer.write(build_page(Paths.of(config, Path(sys.argv[1])), config).encode())"
    )
    there = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(paths.root)], cwd=ROOT, env=there, capture_output=True, check=True
    )
    assert done.stdout == build_page(paths, config).encode() == build_page(paths, config).encode()


def test_the_policy_allows_this_style_and_this_script_only(
    finished_run: tuple[Paths, Config], read_page: ReadPage
) -> None:
    html = build_page(*finished_run)
    page = read_page(html)
    policy = next(value for value in page.values("content") if "default-src" in value)
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    for name in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.raw[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
        assert page.tags[name] == 1


def test_whatever_the_files_hold_is_text(tmp_path: Path, write_run: Any, assert_sound: ReadPage) -> None:
    evil = '<script>alert(1)<b>"&amp;'
    paths, config = write_run(tmp_path, cases=4, strata=(evil + "stratum", "plain"), prefix=evil)
    write_findings(paths.findings, [Finding(evil + "finding", "noted", evil + "fault", evil + "detail")])
    write_json(paths.proof, {evil + "key": evil + "value", "parts": {evil + "part": {evil + "column": evil}}})
    write_json(paths.train / "thresholds.json", {"thresholds": {evil + "threshold": evil}})
    metrics = json.loads((paths.reports / "metrics.json").read_text())
    write_json(paths.reports / "metrics.json", metrics | {"seen_unchecked": [evil + "doubt"]})
    write_text(paths.train / "config.yaml", f"train: {{steps: '</pre>{evil}steps'}}\n")
    html = build_page(paths, config)
    page = assert_sound(html)
    assert page.tags["script"] == 1 and page.tags["b"] == 0 and html.count("<script>") == 1
    shown = "stratum finding fault detail key value part column threshold steps doubt"
    for name in shown.split():
        assert evil + name in page.text
    assert f"{evil}-00" in page.text


OPTIONAL = {
    "cases.jsonl": "make ingest", "findings.csv": "make ingest", "proof.json": "make split", "groups.png": "make split",
    "contact_sheet.png": "make augment", "history.csv": "make train", "thresholds.json": "make train",
    "masks": "make evaluate", "images": "make ingest", "labels": "make ingest", "evaluate.stage.json": "make evaluate",
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_missing_file_is_named_with_what_makes_it(
    tmp_path: Path, finished_run: tuple[Paths, Config], name: str, assert_sound: ReadPage
) -> None:
    shutil.copytree(finished_run[0].root, tmp_path, dirs_exist_ok=True)
    config = finished_run[1]
    for found in list(tmp_path.rglob(name)):
        if found.is_dir():
            shutil.rmtree(found)
        else:
            found.unlink()
    page = assert_sound(build_page(Paths.of(config, tmp_path), config))
    named = re.findall(r"not there: (\S+) ?[.;] make it with (make \w+)", page.text, re.IGNORECASE)
    assert any(name in Path(file).parts and made_by == OPTIONAL[name] for file, made_by in named)


def test_scores_alone_are_enough(tmp_path: Path, finished_run: tuple[Paths, Config], assert_sound: ReadPage) -> None:
    source, config = finished_run
    paths = Paths.of(config, tmp_path)
    paths.reports.mkdir(parents=True)
    for name in ("metrics.json", "per_case.csv"):
        shutil.copy(source.reports / name, paths.reports / name)
    page = assert_sound(build_page(paths, config))
    assert page.text.count("Not there") >= 6
    assert "learning_rate: 0.001" in page.text  # the settings given stand in for those that training froze


def test_missing_scores_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    config = Config(dataset="disks", run="disks")
    with pytest.raises(ValueError, match=r"(?s)metrics\.json: expected .*per_case\.csv: expected .*make evaluate"):
        build_page(Paths.of(config, tmp_path), config)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[1]", "expected a JSON object, found a list"),
        ("{", "found something else"),
        ('{"part": "test"}', "below the key 'test'"),
    ],
)
def test_wrong_scores_are_an_error(tmp_path: Path, finished_run: tuple[Paths, Config], content: str, told: str) -> None:
    paths = Paths.of(finished_run[1], tmp_path)
    write_text(paths.reports / "metrics.json", content)
    write_text(paths.reports / "per_case.csv", "case_id,dice\na,zero\n")
    with pytest.raises(ValueError, match=re.escape(told)):
        build_page(paths, finished_run[1])


def test_a_cell_that_is_no_number_is_an_error(tmp_path: Path, finished_run: tuple[Paths, Config]) -> None:
    shutil.copytree(finished_run[0].root, tmp_path, dirs_exist_ok=True)
    paths = Paths.of(finished_run[1], tmp_path)
    write_text(paths.reports / "per_case.csv", "case_id,group,stratum,dice\na,g,s,zero\n")
    with pytest.raises(ValueError, match=r"per_case\.csv: expected numbers .*found in case 'a'"):
        build_page(paths, finished_run[1])


def test_a_mask_of_another_size_is_an_error(tmp_path: Path, write_run: Any) -> None:
    paths, config = write_run(tmp_path, cases=2)
    write_png(paths.reports / "masks" / "case-01.png", np.zeros((5, 5), np.uint16))
    with pytest.raises(ValueError, match=r"case-01\.png: expected truth and prediction of one shape"):
        build_page(paths, config)


def test_few_groups_have_no_interval(tmp_path: Path, write_run: Any, assert_sound: ReadPage) -> None:
    page = assert_sound(build_page(*write_run(tmp_path, cases=3, strata=("pink",))))
    assert "no interval" in page.text and "has 3 groups. Below 10 there is no interval" in page.text
    assert "bootstrap resamples" not in page.text


def test_every_figure_of_several_classes_has_a_name_and_a_meaning(
    tmp_path: Path, write_run: Any, assert_sound: ReadPage
) -> None:
    paths, config = write_run(tmp_path, cases=4, kind="semantic")
    rows = [
        {"case_id": f"case-{number:02d}", "group": f"group-{number}", "stratum": "pink"}
        | score_case(np.eye(9, dtype=np.uint16), np.eye(9, k=number, dtype=np.uint16), "semantic", 2)
        for number in range(4)
    ]
    write_json(paths.reports / "metrics.json", summarise(per_case_table(rows), "test"))
    write_json(paths.train / "model.json", {"target": "classes", "channels": ["background", "class 1", "class 2"]})
    html = build_page(paths, config)
    page = assert_sound(html)
    assert "Dice, class 1 0.2500 – 4 4 Dice of class 1; mean over images with it" in page.text
    assert "dice_class" not in page.text and "outline of a true region" in page.text
    # Four groups have no interval: no chart says that it has.
    assert "Dice: every image, mean<" in html
    assert "target classes" in page.text


def test_semantic_labels_are_ranked_by_dice(tmp_path: Path, write_run: Any, assert_sound: ReadPage) -> None:
    page = assert_sound(build_page(*write_run(tmp_path, kind="semantic")))
    assert "Ranked by Dice" in page.text
    assert "What went wrong" not in page.text and "merged" not in page.text
    assert "foreground of the truth that the prediction lacks" in page.text
    assert "confused" not in page.text and "left out of every score" not in page.text


@pytest.mark.parametrize(("kind", "metric", "title"), [("instance", "ap", "AP"), ("semantic", "dice", "Dice")])
def test_the_gap_to_validation_and_the_probabilities_are_shown(
    tmp_path: Path, write_run: Any, assert_sound: ReadPage, kind: str, metric: str, title: str
) -> None:
    paths, config = write_run(tmp_path, kind=kind)
    without = assert_sound(build_page(paths, config))
    assert "From validation to test" not in without.text and "keep their word" not in without.text
    metrics = json.loads((paths.reports / "metrics.json").read_text())
    test = metrics["test"][metric]
    bins = [{"said": said, "seen": seen, "pixels": 50} for said, seen in ((0.04, 0.0), (0.55, 0.25), (0.97, 0.75))]
    metrics["validation"] = {"metric": metric, "score": test["mean"] + 0.1, "test": test["mean"], "gap": 0.1}
    metrics["calibration"] = {"error": 0.187, "brier": 0.2, "unsure": {"share": 0.333, "error": 0.3}, "bins": bins}
    write_json(paths.reports / "metrics.json", metrics)
    page = assert_sound(build_page(paths, config))
    assert f"{title}, validation {test['mean'] + 0.1:.3f} {title}, test {test['mean']:.3f}" in page.text
    assert (
        "difference -0.100 Weights and thresholds were chosen by the first score, on the validation part" in page.text
    )
    assert "error 0.187, but 0.300 of the 33.3 % of pixels given 0.1 to 0.9; Brier score 0.200." in page.text
    told = "Share of foreground by probability: 0.04 said, 0.00 seen, 0.55 said, 0.25 seen, 0.97 said, 0.75 seen"
    assert told in page.values("aria-label")
    # An ensemble was not tuned on the validation part alone; nor was anything measured where no pixel counted.
    write_text(paths.train / "config.yaml", "train: {members: [one, two]}\n")
    write_json(paths.reports / "metrics.json", metrics | {"calibration": {}})
    page = assert_sound(build_page(paths, config))
    assert f"{title}, where it was tuned" in page.text and "by the members that did not train on it" in page.text
    assert "keep their word" not in page.text


def test_cases_without_stratum_and_without_score(tmp_path: Path, write_run: Any, assert_sound: ReadPage) -> None:
    paths, config = write_run(tmp_path, strata=("",))
    file = paths.reports / "per_case.csv"
    rows = list(csv.reader(file.read_text().splitlines()))
    write_text(file, "".join(",".join(row) + "\n" for row in [*rows, ["unscored", "", "", *[""] * (len(rows[0]) - 3)]]))
    page = assert_sound(build_page(paths, config))
    assert "no stratum" in page.text and "unscored" not in page.text


def crowded_images(dsb2018: Path, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The real images with most nuclei, which have most outlines, each with its label."""
    found = []
    with zipfile.ZipFile(dsb2018 / "stage1_train.zip") as archive:
        masks: dict[str, list[str]] = {}
        for name in archive.namelist():
            if name.endswith(".png") and "/masks/" in name:
                masks.setdefault(name.split("/masks/")[0], []).append(name)
        for folder in sorted(masks, key=lambda folder: (-len(masks[folder]), folder))[:count]:
            file = f"{folder}/images/{folder.rsplit('/', 1)[-1]}.png"
            image: Any = cv2.imdecode(np.frombuffer(archive.read(file), np.uint8), cv2.IMREAD_COLOR)
            label = np.zeros(image.shape[:2], np.uint16)
            for number, name in enumerate(sorted(masks[folder]), start=1):
                mask: Any = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_GRAYSCALE)
                label[mask > 127] = number
            found.append((image, label))
    return found


@pytest.mark.real
def test_twelve_real_cases_stay_below_a_megabyte_and_a_half(
    tmp_path: Path, dsb2018: Path, assert_sound: ReadPage
) -> None:
    config = Config(dataset="dsb2018", run="dsb2018")
    paths = Paths.of(config, tmp_path)
    rows, records = [], []
    for number, (image, label) in enumerate(crowded_images(dsb2018, 2) * 6):
        case_id, (height, width) = f"case-{number:02d}", label.shape
        prediction = np.roll(label, (number % 5, 4), (0, 1))
        write_png(paths.ingest / "images" / f"{case_id}.png", image)
        write_png(paths.ingest / "labels" / f"{case_id}.png", label)
        write_png(paths.reports / "masks" / f"{case_id}.png", prediction)
        records.append(
            Case(case_id, "dsb2018", f"images/{case_id}.png", f"labels/{case_id}.png", "instance", None, None,
                 height, width, None, "")
        )  # fmt: skip
        rows.append({"case_id": case_id, "group": case_id, "stratum": "", **score_case(label, prediction, "instance")})
    write_cases(paths.cases, records)
    table = per_case_table(rows)
    write_text(paths.reports / "per_case.csv", table.to_csv(index=False, lineterminator="\n"))
    write_json(paths.reports / "metrics.json", summarise(table, "test"))
    html = build_page(paths, config)
    assert_sound(html)
    assert html.count("data:image/webp") == 12
    assert len(html.encode()) < 1_500_000


def test_a_run_without_test_part_says_that_there_is_nothing_to_report(
    tmp_path: Path, finished_run: tuple[Paths, Config]
) -> None:
    shutil.copytree(finished_run[0].root, tmp_path, dirs_exist_ok=True)
    paths = Paths.of(finished_run[1], tmp_path)
    for name in ("metrics.json", "per_case.csv"):
        (paths.reports / name).unlink()
    with pytest.raises(ValueError, match=r"no test case has truth \(split\.test_share=0\).*`make submission` needs no"):
        build_page(paths, finished_run[1])
