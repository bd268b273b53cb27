"""A small finished run, written by the same code as a real one: disks with every kind of error in every image."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.config import Config, dump_config
from pipeline.metrics.normalisers import INPUT, long_table, summarise_methods
from pipeline.metrics.summary import per_case_table, score_case, summarise
from pipeline.records.case import Case, LabelKind, write_cases
from pipeline.records.files import write_json, write_text
from pipeline.records.findings import Finding, write_findings
from pipeline.records.paths import Paths
from pipeline.records.rasters import write_png

HEIGHT, WIDTH = 72, 96
WriteRun = Callable[..., tuple[Paths, Config]]


VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Tags in balance, ids, references and texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.faults: list[str] = []
        self.texts: list[str] = []
        self.raw: dict[str, str] = {}
        self.feed(html)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        names = [name for name, _ in attrs]
        self.faults += [f"<{tag}> has {name} twice" for name in set(names) if names.count(name) > 1]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.faults.append(f"</{tag}> closes {self.open[-1:]} at {self.getpos()}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "script"):
            self.raw[self.open[-1]] = self.raw.get(self.open[-1], "") + data
        else:
            self.texts.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def check_page(html: str) -> Page:
    """Well formed, ids unique, references met, nothing inline that the policy forbids, nothing from outside."""
    page = Page(html)
    assert page.faults == []
    ids = page.values("id")
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    links = page.values("href") + page.values("src") + page.values("xlink:href")
    assert {link for link in links if link.startswith("#")} <= {f"#{name}" for name in ids}
    assert all(link.startswith(("#", "data:image/webp;base64,")) for link in links)
    assert page.values("style") == []
    assert [name for _, name, _ in page.attributes if name.startswith("on")] == []
    without_pictures = re.sub(r"data:image/webp;base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", without_pictures)
    return page


@pytest.fixture(scope="session")
def read_page() -> Callable[[str], Page]:
    """Parse a page, whatever it is."""
    return Page


@pytest.fixture(scope="session")
def assert_sound() -> Callable[[str], Page]:
    """Check a page and parse it."""
    return check_page


def draw_disks(places: dict[int, tuple[int, int, int]]) -> np.ndarray:
    """Labels with a disk (row, column, radius) for each id."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint16)
    for number, (row, column, radius) in places.items():
        cv2.circle(labels, (column, row), radius, number, -1)
    return labels


def truth_and_prediction(shift: int) -> tuple[np.ndarray, np.ndarray]:
    """One object each that is found (the less well, the larger the shift), missed, split; two merged; one spurious."""
    truth = draw_disks({1: (18, 18, 9), 2: (18, 48, 7), 3: (50, 16, 8), 4: (50, 33, 8), 5: (50, 66, 12)})
    prediction = draw_disks({1: (18, 18 + shift, 9), 2: (14, 82, 6)})
    prediction[(truth == 3) | (truth == 4)] = 3
    prediction[(truth == 5) & (np.arange(WIDTH) < 66)] = 4
    prediction[(truth == 5) & (np.arange(WIDTH) > 66)] = 5
    return truth, prediction


@pytest.fixture(scope="session")
def write_run() -> WriteRun:
    """Write a run below a folder: as many cases as given, one a group."""

    def write(
        root: Path,
        cases: int = 12,
        kind: LabelKind = "instance",
        strata: tuple[str, ...] = ("pink", "grey"),
        prefix: str = "case",
    ) -> tuple[Paths, Config]:
        config = Config(dataset="disks", run="disks")
        paths = Paths.of(config, root)
        rows, records = [], []
        for number in range(cases):
            case_id, stratum = f"{prefix}-{number:02d}", strata[number % len(strata)]
            truth, prediction = truth_and_prediction(number % 5)
            if kind != "instance":
                truth, prediction = (truth > 0).astype(np.uint16), (prediction > 0).astype(np.uint16)
            image = np.full((HEIGHT, WIDTH, 3), (236, 200, 222), np.uint8)
            image[truth > 0] = (110, 60, 150)
            write_png(paths.ingest / "images" / f"{case_id}.png", image)
            write_png(paths.ingest / "labels" / f"{case_id}.png", truth)
            write_png(paths.reports / "masks" / f"{case_id}.png", prediction)
            records.append(
                Case(case_id, "disks", f"images/{case_id}.png", f"labels/{case_id}.png", kind, f"group-{number}",
                     stratum, HEIGHT, WIDTH, None, case_id)
            )  # fmt: skip
            rows.append(
                {
                    "case_id": case_id,
                    "group": f"group-{number}",
                    "stratum": stratum,
                    **score_case(truth, prediction, kind),
                }
            )
        write_cases(paths.cases, records)
        table = per_case_table(rows)
        write_text(paths.reports / "per_case.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.6f"))
        write_json(paths.reports / "metrics.json", {**summarise(table, "test"), "run": "disks", "dataset": "disks"})
        write_other_stages(paths, config)
        return paths, config

    return write


def write_other_stages(paths: Paths, config: Config) -> None:
    """Everything that the page can do without."""
    history = io.StringIO()
    writer = csv.writer(history, lineterminator="\n")
    writer.writerow(["step", "epoch", "learning_rate", "loss", "validation_dice", "validation_iou", "best"])
    writer.writerows([[10 * k, k, 1e-3 / k, 1 / k, 1 - 1 / (k + 1), 1 - 1 / k, int(k == 4)] for k in range(1, 6)])
    write_text(paths.train / "history.csv", history.getvalue())
    write_text(paths.train / "config.yaml", dump_config(config))
    chosen = {"part": "validation", "cases": ["a", "b"], "score": 0.5}
    write_json(
        paths.train / "thresholds.json", {"chosen_on": chosen, "thresholds": {"foreground": 0.45, "minimum_size": 16}}
    )
    write_json(
        paths.proof,
        {
            "groups_in_two_parts": [],
            "joins_across_parts": [],
            "cases": 40,
            "groups": 20,
            "parts": {
                "train": {"cases": 26, "groups": 13, "share": 0.65},
                "test": {"cases": 14, "groups": 7, "share": 0.35},
            },
            "strata": {"pink": {"train": {"cases": 13, "groups": 7}, "test": {"cases": 7, "groups": 3}}},
            "ungrouped_split": {"test_cases": 14, "leaked": 9.3, "random_splits": 100},
        },
    )
    write_findings(
        paths.findings,
        [Finding("gone", "excluded", "size mismatch", "mask 3"), Finding("case-01", "repaired", "overlap", "4 px")],
    )
    for sheet in (paths.split / "groups.png", paths.augment / "contact_sheet.png"):
        write_png(sheet, np.full((40, 60, 3), 128, np.uint8))
    provenance = {
        "seed": 1412,
        "versions": {"torch": "2.0"},
        "commit": "0123456789ab",
        "machine": "Linux",
        "seconds": 3.5,
    }
    stages = (paths.ingest, paths.split, paths.normalise, paths.augment, paths.train, paths.predict)
    for file in (*(folder / "stage.json" for folder in stages), paths.reports / "evaluate.stage.json"):
        made = {"made_from": {"inputs": {"data/raw": "a" * 64}}, "outputs": {"x": [3, "b" * 64]}}
        write_json(file, {"stage": file.parent.name, **made, "provenance": provenance})


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, write_run: WriteRun) -> tuple[Paths, Config]:
    """A run with nothing missing; tests read it and never change it."""
    return write_run(tmp_path_factory.mktemp("finished"))


METHODS = {INPUT: "input", "reinhard": "classical", "other/run": "run", "own/run": "run"}
SHIFTS = {INPUT: 40, "reinhard": 24, "other/run": 16, "own/run": 8}
"""Grey levels by which each method misses the target; every case adds one more."""


@pytest.fixture(scope="session")
def write_judged() -> WriteRun:
    """Write a judged normaliser below a folder: flat images that miss their target by a known number of levels."""

    def write(
        root: Path,
        cases: int = 12,
        kind: str = "paired",
        side: int = 40,
        groups: int = 12,
        noise: int = 0,
        prefix: str = "case",
        strata: tuple[str, ...] = ("pink", "grey"),
    ) -> tuple[Paths, Config]:
        config = Config(dataset="flat", run="own/run")
        paths = Paths.of(config, root)
        generator = np.random.default_rng(0)
        rows, records = [], []
        for number in range(cases):
            case_id, stratum = f"{prefix}-{number:02d}", strata[number % len(strata)]
            target = np.full((side, side + 8, 3), 100, np.uint8)
            target += generator.integers(0, noise + 1, target.shape, dtype=np.uint8)
            write_png(paths.ingest / "images" / f"{case_id}.png", target + 40)
            write_png(paths.ingest / "labels" / f"{case_id}.png", target)
            group = f"group-{number % groups}"
            records.append(
                Case(case_id, "flat", f"images/{case_id}.png", f"labels/{case_id}.png", "image", group, stratum, side,
                     side + 8, None, case_id)
            )  # fmt: skip
            for name, shift in SHIFTS.items():
                made = target + np.uint8(shift + number)
                write_png(paths.made_image(name, case_id), made)
                labels = {"case_id": case_id, "group": group, "stratum": stratum, "method": name}
                if kind == "unpaired":
                    scores = {"energy_distance": shift / 100 + number / 1000, "structure": 1.0 - shift / 1000}
                else:
                    scores = {"psnr": 20 * np.log10(255 / (shift + number)), "ssim": 1 - shift / 200}
                    scores["ciede2000"] = shift / 10 + number / 100
                rows.append(labels | {"status": "ok"} | scores)
        write_cases(paths.cases, records)
        table = long_table(rows, [*METHODS])
        content = summarise_methods(table, "own/run", METHODS, "test")
        reference = None
        if kind == "unpaired":
            reference = {"strata": ["blue"], "cases": 9, "split_half": 0.1, "side": 40, "quality": 90}
            reference |= {"pixels_of_each": 64, "compared": cases}
            for entry in content["methods"].values():
                for scores in (entry["test"], *entry["by_stratum"].values()):
                    for name in ("energy_distance", "energy_ratio", "excess_removed"):
                        scores[name] = {"mean": 0.5, "low": None, "high": None, "groups": groups, "cases": cases}
            content["ranked_by"] = "excess_removed"
        content |= {"run": "own/run", "dataset": "flat", "kind": kind, "unscored": 0, "left_out": 0}
        content |= {"segmenter": None, "reference": reference, "excluded": {}}
        write_text(paths.reports / "per_case.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.6f"))
        write_json(paths.reports / "metrics.json", content)
        write_json(paths.reports / "timing.json", {"megapixels_per_second": {"reinhard": 61.5}, "images": 8})
        places = "".join(
            f"{prefix}-{n:02d},{n},{n % 3},{strata[n % len(strata)]},group-{n % groups}\n" for n in range(cases)
        )
        write_text(paths.reports / "codes.csv", "case_id,x,y,stratum,group\n" + places)
        write_other_stages(paths, config)
        write_text(
            paths.train / "history.csv",
            "step,epoch,learning_rate,loss,loss_discriminator,validation_psnr,validation_ssim,active_latents,best\n"
            "10,1,0.001,0.2,0.7,20,0.8,4,0\n20,2,0.0005,0.1,0.6,22,0.9,7,1\n",
        )
        return paths, config

    return write
