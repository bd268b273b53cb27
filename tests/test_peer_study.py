"""Segmenters side by side: no label of the test part leaves, scores are those of evaluate, failures are rows."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from pipeline import peer_study
from pipeline.__main__ import main
from pipeline.benchmarks import peers
from pipeline.config import Config, ConfigError, load_config
from pipeline.peer_study import Outcome, as_table, compared, run_peer_study, score_masks, write_exchange
from pipeline.records.case import IGNORED
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, read_label, write_png
from pipeline.records.split import read_parts
from pipeline.runner import run as run_stage
from pipeline.segmenters import SEGMENTERS, Segmenter
from pipeline.segmenters.nnunet import BORDER, CORE, classes_of, grown
from pipeline.segmenters.trial import Trial, connected, padded

TINY = [
    "dataset=sample", "run=tiny", "ingest.group_csv=truth/groups.csv", "split.test_share=0.25",
    "split.validation_share=0.25", "augment.crop=64", "train.network.width=4", "train.network.depth=2",
    "train.steps=3", "train.batch=2", "train.validations=1", "compute.threads=1", "compute.workers=0",
]  # fmt: skip
FAKE = """
from pathlib import Path
from pipeline.segmenters.trial import Trial, connected, run

def segment(trial: Trial) -> None:
    with (trial.data.parent / "visits.txt").open("a") as visits:
        visits.write(f"{trial.minutes:g} {trial.seed}\\n")
    darkness = lambda image: 1.0 - image.mean(axis=2) / 255.0
    images = [trial.image("validation", name) for name in trial.names("validation")]
    settings = [{"threshold": one, "smallest": 5} for one in (0.2, 0.4, 0.6)]
    with trial.clock("trained"):
        chosen = trial.choose(settings, lambda at, setting: connected(darkness(images[at]), **setting))
    trial.write_masks(lambda image: connected(darkness(image), **chosen))

if __name__ == "__main__":
    run(segment, ("numpy",))
"""
NAMES = {"fake": "Fake", "broken": "Broken", "absent": "Absent", "later": "Later"}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, sample_folder: Path) -> tuple[Path, Config]:
    """A root with a run that is scored, of which tests change nothing."""
    root = tmp_path_factory.mktemp("study")
    (root / "data" / "raw").mkdir(parents=True)
    (root / "data" / "raw" / "sample").symlink_to(sample_folder)
    config = load_config(None, TINY)
    run_stage("evaluate", config, Paths.of(config, root), with_needs=True)
    return root, config


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Libraries whose scripts run in this environment: one that works, one that fails, one that is not installed."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name in NAMES:
        (scripts / f"{name}.py").write_text(FAKE, encoding="utf-8")
    (scripts / "broken.py").write_text("raise SystemExit('no | such thing')\n", encoding="utf-8")
    (scripts / "trial.py").write_text("", encoding="utf-8")
    monkeypatch.setattr(peer_study, "SCRIPTS", scripts)
    monkeypatch.setattr(peer_study, "SEGMENTERS", {name: Segmenter(shown, "none") for name, shown in NAMES.items()})
    monkeypatch.setattr(peers, "requirements", lambda: {name: (f"{name}==1",) for name in NAMES})
    monkeypatch.setattr(peers, "missing", lambda name: peers.INSTALL if name == "absent" else "")
    monkeypatch.setattr(peers, "python_of", lambda name: Path(sys.executable))
    return scripts


def with_own_results(evaluated: tuple[Path, Config], tmp_path: Path) -> Path:
    """The same data below another root, where a study may write."""
    root, own = evaluated[0], tmp_path / "root"
    (own / "data").mkdir(parents=True)
    for name in ("raw", "ingest", "split", "train", "predict"):
        (own / "data" / name).symlink_to(root / "data" / name)
    (own / "reports").mkdir()
    (own / "reports" / "tiny").symlink_to(root / "reports" / "tiny")
    return own


# --- The exchanged folder -------------------------------------------------------------------------------------------


def test_the_exchanged_folder_has_the_same_pixels_and_no_label_of_the_test_part(
    evaluated: tuple[Path, Config], tmp_path: Path
) -> None:
    root, config = evaluated
    paths = Paths.of(config, root)
    parts = read_parts(paths)
    digest = write_exchange(parts, paths, tmp_path / "out")
    written = {file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*.png")}
    wanted = {f"{part}/images/{case.case_id}.png" for part in ("train", "validation", "test") for case in parts[part]}
    wanted |= {f"{part}/labels/{case.case_id}.png" for part in ("train", "validation") for case in parts[part]}
    assert written == wanted and not (tmp_path / "out" / "test" / "labels").exists()
    trial = Trial(tmp_path / "out", tmp_path / "trial", 1.0, 1, 0)
    for part in ("train", "test"):
        case = parts[part][0]
        np.testing.assert_array_equal(trial.image(part, case.case_id), read_image(paths.ingest / case.image))
    case = parts["train"][0]
    np.testing.assert_array_equal(trial.label("train", case.case_id), read_label(paths.ingest / str(case.label)))
    moved = {**parts, "train": parts["train"][1:], "test": [*parts["test"], parts["train"][0]]}
    assert write_exchange(moved, paths, tmp_path / "out") != digest
    assert not (tmp_path / "out" / "train" / "labels" / f"{parts['train'][0].case_id}.png").exists()
    assert write_exchange(parts, paths, tmp_path / "out") == digest


def test_ignored_pixels_are_handed_over_as_background(tmp_path: Path, evaluated: tuple[Path, Config]) -> None:
    root, config = evaluated
    parts = read_parts(Paths.of(config, root))
    case = parts["train"][0]
    paths = Paths.of(config, tmp_path)
    for one in (one for part in ("train", "validation", "test") for one in parts[part]):
        write_png(paths.ingest / one.image, np.zeros((one.height, one.width, 3), np.uint8))
        write_png(paths.ingest / str(one.label), np.full((one.height, one.width), IGNORED, np.uint16))
    write_exchange(parts, paths, tmp_path / "out")
    assert read_label(tmp_path / "out" / "train" / "labels" / f"{case.case_id}.png").max() == 0


def test_labels_that_are_no_objects_are_refused(tmp_path: Path, evaluated: tuple[Path, Config]) -> None:
    from dataclasses import replace

    root, config = evaluated
    parts = read_parts(Paths.of(config, root))
    parts["train"] = [replace(case, label_kind="semantic") for case in parts["train"]]
    parts["validation"] = []
    with pytest.raises(ValueError, match=r"part validation, found none(?s:.)*an id an object, found semantic"):
        write_exchange(parts, Paths.of(config, root), tmp_path)


# --- Scores -----------------------------------------------------------------------------------------------------------


def test_scores_of_masks_are_those_of_stage_evaluate(evaluated: tuple[Path, Config], tmp_path: Path) -> None:
    root, config = evaluated
    paths = Paths.of(config, root)
    cases = read_parts(paths)["test"]
    score_masks(paths.reports / "masks", cases, paths).to_csv(
        tmp_path / "scores.csv", index=False, lineterminator="\n", float_format="%.6f"
    )
    assert (tmp_path / "scores.csv").read_bytes() == (paths.reports / "per_case.csv").read_bytes()


def test_masks_that_are_missing_or_of_another_size_are_named(evaluated: tuple[Path, Config], tmp_path: Path) -> None:
    root, config = evaluated
    paths = Paths.of(config, root)
    cases = read_parts(paths)["test"][:2]
    write_png(tmp_path / f"{cases[0].case_id}.png", np.zeros((3, 4), np.uint16))
    with pytest.raises(ValueError, match=r"expected 2 masks, found 2 wrong: .*of \(3, 4\), expected .*missing"):
        score_masks(tmp_path, cases, paths)


# --- The study --------------------------------------------------------------------------------------------------------


def test_a_study_resumes_and_failures_are_rows(
    evaluated: tuple[Path, Config], fakes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = with_own_results(evaluated, tmp_path)
    home = root / "data" / "peers" / "sample" / "default"
    run_peer_study(None, TINY, 0.5, ["fake", "broken", "absent"], root=root)
    table = (root / "reports" / "peers" / "sample" / "table.md").read_text(encoding="utf-8")
    by_name = {line.split(" | ")[0].strip("| "): line for line in table.splitlines() if line.startswith("| ")}
    assert "no / such thing" in by_name["Broken"] and "ended with status 1" in by_name["Broken"]
    assert peers.INSTALL in by_name["Absent"] and "not run" in by_name["Later"]
    metrics = json.loads((root / "reports" / "peers" / "sample" / "metrics.json").read_text(encoding="utf-8"))
    fake = metrics["segmenters"]["fake"]
    scores = pd.read_csv(root / "reports" / "peers" / "sample" / "fake" / "per_case.csv")
    ours = pd.read_csv(root / "reports" / "tiny" / "per_case.csv")
    assert scores.columns.tolist() == ours.columns.tolist()
    assert fake["parts"]["all"]["ap"]["mean"] == pytest.approx(scores["ap"].mean(), abs=1e-6)
    assert fake["differences"]["all"]["ap"]["difference"] == pytest.approx(
        ours["ap"].mean() - scores["ap"].mean(), abs=2e-6
    )
    assert fake["facts"]["test_images"] == len(ours) and fake["facts"]["peak_megabytes"] > 10
    assert f"| Fake | {scores['ap'].mean():.3f} |" in table
    for name in ("differences.png", "cases.png"):
        assert read_image(root / "reports" / "peers" / "sample" / name).std() > 1

    # The same command: what is complete is not made again, what failed is tried again, and keeps its error.
    run_peer_study(None, TINY, 0.5, ["fake", "broken"], root=root)
    assert (home / "visits.txt").read_text(encoding="utf-8").splitlines() == ["0.5 1412"]
    run_peer_study(None, TINY, 0.5, [], root=root)
    metrics = json.loads((root / "reports" / "peers" / "sample" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["segmenters"]["broken"]["missing"].startswith("ended with status 1")
    assert metrics["segmenters"]["fake"]["parts"] == fake["parts"]

    # Other minutes, or another script: made anew, the former kept and taken back.
    run_peer_study(None, TINY, 0.25, ["fake"], root=root)
    run_peer_study(None, TINY, 0.5, ["fake"], root=root)
    assert (home / "visits.txt").read_text(encoding="utf-8").splitlines() == ["0.5 1412", "0.25 1412"]
    (home / "fake" / "masks" / f"{scores['case_id'][0]}.png").unlink()
    (fakes / "later.py").write_text("", encoding="utf-8")
    capsys.readouterr()
    run_peer_study(None, TINY, 0.5, ["fake", "later"], root=root)
    assert len((home / "visits.txt").read_text(encoding="utf-8").splitlines()) == 3
    assert "later: ended without facts.json" in capsys.readouterr().out


def test_what_cannot_be_studied_is_told_before_anything_is_trained() -> None:
    with pytest.raises(ConfigError, match=r"(?s)more than 0, found 0.*some of stardist, .*, found detectron") as raised:
        run_peer_study(None, TINY, 0.0, ["detectron"])
    assert str(raised.value).endswith("Nothing was trained")


def test_pools_must_be_of_strata_that_are_there(evaluated: tuple[Path, Config], fakes: Path) -> None:
    root, _ = evaluated
    with pytest.raises(ConfigError, match=r"--pool: expected strata of the test part, found purple/green"):
        run_peer_study(None, TINY, 1.0, pools=["tissue=purple/green"], root=root)


def test_the_command_line_names_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["peers", "--minutes", "0", *TINY]) == 2
    assert "--minutes: expected more than 0" in capsys.readouterr().err


def scored(ap: float, found: int) -> pd.DataFrame:
    from pipeline.metrics.summary import per_case_table

    rows = [
        {"case_id": f"c{n:02d}", "group": f"g{n}", "stratum": "pink" if n % 2 else "dark", "truth_objects": 8,
         "tp_70": found, "fp_70": 0, "fn_70": 8 - found, "tp": 1, "fp": 0, "fn": 0,
         **dict.fromkeys(("dice", "iou", "ap", "f1_70", "recall_70"), ap)}
        for n in range(24)
    ]  # fmt: skip
    return per_case_table(rows)


def test_the_table_sets_ours_against_every_other() -> None:
    facts: dict[str, Any] = {"seconds_trained": 2700.0, "peak_megabytes": 812.3, "seconds_predicted": 12.0,
                             "test_images": 24, "versions": {"python": "3", "stardist": "0.9.2"}}  # fmt: skip
    outcomes = {
        "tiny": Outcome("stainseg (tiny)", "", scored(0.5, 6)),
        "stardist": Outcome("StarDist", "", scored(0.4, 4), facts),
        "monai": Outcome("MONAI", "ended with status 1: a | b"),
    }
    metrics = compared("tiny", outcomes, {"tissue": ["pink"]}, 2000, 1)
    made = {"command": "c", "versions": {"stainseg": "0", "python": "3"}, "commit": "abc"}
    table = as_table({"dataset": "d", "split": "s", "threads": 1, "made": made} | metrics)
    assert "| StarDist | 0.400 | 0.400 | 0.400 | 0.400 | 0.667 | 0.500 | 45.0 | 812 | 0.50 |" in table
    assert "| stainseg (tiny) | 0.500 | 0.500 | 0.500 | 0.500 | 0.857 | 0.750 | - | - | - |" in table
    assert "| StarDist | all (24) | ap | 0.400 | 0.500 | +0.100 (+0.100 to +0.100) | 24, 0, 24 | better |" in table
    assert "| StarDist | tissue (12) | recall_70_pooled | 0.500 | 0.750 | +0.250" in table
    assert table.count("| MONAI | ended with status 1: a / b |") == 2
    assert f"- StarDist (stardist 0.9.2): {SEGMENTERS['stardist'].recipe}." in table


def test_without_our_run_the_others_still_have_scores() -> None:
    outcomes = {"tiny": Outcome("stainseg (tiny)", "not run: make evaluate"),
                "stardist": Outcome("StarDist", "", scored(0.4, 4))}  # fmt: skip
    entry = compared("tiny", outcomes, {}, 2000, 1)["segmenters"]["stardist"]
    assert entry["parts"]["all"]["ap"]["mean"] == pytest.approx(0.4) and "differences" not in entry


def test_a_run_that_was_scored_on_another_split_is_told_beside_the_others() -> None:
    elsewhere = scored(0.5, 6).assign(stratum="grey", case_id=[f"d{n:02d}" for n in range(24)])
    outcomes = {"tiny": Outcome("stainseg (tiny)", "", elsewhere), "stardist": Outcome("StarDist", "", scored(0.4, 4))}
    metrics = compared("tiny", outcomes, {"tissue": ["pink"]}, 2000, 1)
    made = {"command": "c", "versions": {"stainseg": "0", "python": "3"}, "commit": "abc"}
    table = as_table({"dataset": "d", "split": "s", "threads": 1, "made": made} | metrics)
    assert "| stainseg (tiny) | 0.500 | 0.500 | 0.500 | - | - | - |" in table
    assert (
        "| StarDist | not compared: expected the same scored cases in both runs, found 24 and 24, of which 0" in table
    )


# --- What the scripts share -------------------------------------------------------------------------------------------


def test_the_choice_is_made_on_validation_by_average_precision(tmp_path: Path) -> None:
    truth = np.zeros((20, 20), np.uint16)
    truth[2:8, 2:8], truth[10:18, 10:18] = 1, 2
    write_png(tmp_path / "validation" / "images" / "a.png", np.zeros((20, 20, 3), np.uint8))
    write_png(tmp_path / "validation" / "labels" / "a.png", truth)
    trial = Trial(tmp_path, tmp_path / "out", 1.0, 1, 0)
    foreground = np.where(truth > 0, 0.8, 0.3)
    foreground[0, 0] = 0.8
    settings = [{"threshold": one, "smallest": size} for one in (0.2, 0.5, 0.9) for size in (0, 4)]
    assert trial.choose(settings, lambda _, setting: connected(foreground, **setting)) == {
        "threshold": 0.5, "smallest": 4
    }  # fmt: skip
    assert trial.facts["validation_ap"] == 1.0


def test_steps_fill_the_time_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("pipeline.segmenters.trial.time.perf_counter", lambda: now[0])

    def step() -> None:
        now[0] += 0.5

    assert Trial(tmp_path, tmp_path, 1.0, 1, 0).steps_that_fit(step, beside_s=10.0) == 100
    assert Trial(tmp_path, tmp_path, 0.001, 1, 0).steps_that_fit(step) == 1


def test_scripts_need_nothing_that_their_environments_lack() -> None:
    """What every script imports of ours is loaded alone, as there, and each distribution that it names is at hand."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, pipeline.segmenters.trial; print(*sys.modules)"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    ours = [Path(str(importlib.import_module(name).__file__)) for name in loaded if name.startswith("pipeline.")]
    named = {
        name.split(".")[0]
        for file in ours
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names])
    }
    owners = metadata.packages_distributions()
    found = {owner.lower() for name in named for owner in owners.get(name, ())} - {"stainseg"}
    assert {"numba", "numpy", "pillow", "scipy"} <= found
    brought = {"stardist": {"numba", "numpy", "pillow", "scipy"}, "cellpose": {"numba", "numpy", "scipy"}}
    for name in SEGMENTERS:
        there = {*peers.PEERS[name]} | {"numpy"} | brought.get(name, set())
        assert found <= there, f"{name}: {found - there} missing"


def test_images_are_reflected_up_to_a_multiple() -> None:
    image = np.arange(5 * 7 * 3).reshape(5, 7, 3)
    wide = padded(image, 4)
    assert wide.shape == (8, 8, 3)
    np.testing.assert_array_equal(wide[:5, :7], image)
    np.testing.assert_array_equal(wide[5, :7], image[3])


def test_small_images_and_their_labels_are_reflected_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """StarDist's preparation, which its library, stood in for here, has no part in but for percentiles and holes."""

    def filled(label: np.ndarray) -> np.ndarray:
        return np.where(ndimage.binary_fill_holes(label > 0), np.maximum(label, 1), 0)

    given: dict[str, dict[str, Any]] = {
        "tensorflow": {}, "csbdeep": {}, "csbdeep.utils": {"normalize": lambda image, *_, **__: image},
        "stardist": {"fill_label_holes": filled},
        "stardist.models": dict.fromkeys(("Config2D", "StarDist2D", "StarDistData2D")),
    }  # fmt: skip
    for name, members in given.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("script", peer_study.SCRIPTS / "stardist.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(script := importlib.util.module_from_spec(spec))
    # The second is open to the right, where its mirror image closes it.
    truth = np.zeros((300, 140), np.uint16)
    truth[20:60, 100:130], truth[200:230, 130:], truth[205:225, 135:] = 1, 2, 0
    write_png(tmp_path / "train" / "images" / "a.png", np.repeat(np.uint8(100 * truth)[..., None], 3, axis=2))
    write_png(tmp_path / "train" / "labels" / "a.png", truth)
    (image,), (label,) = script.prepared(Trial(tmp_path, tmp_path / "out", 1.0, 1, 0), "train")
    assert image.shape == (300, 256, 3) and label[:, 140:].any()
    np.testing.assert_array_equal(image[..., 0], 100 * label)


def test_cores_grow_back_into_the_objects_that_they_were_made_from() -> None:
    label = np.zeros((16, 16), np.int32)
    label[1:7, 1:7], label[1:7, 7:13], label[10:14, 3:9], label[15, 15] = 4, 2, 9, 7
    classes = classes_of(label)
    assert classes[2, 2] == CORE and classes[2, 6] == classes[2, 7] == BORDER and classes[15, 15] == CORE
    found = grown(classes)
    for name in (4, 2, 9, 7):
        (one,) = np.unique(found[label == name])
        np.testing.assert_array_equal(found == one, label == name)
    assert not grown(np.full((4, 4), BORDER, np.uint8)).any()
