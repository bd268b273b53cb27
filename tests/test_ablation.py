"""Arms are compared by case and group, and a gain counts only above the noise of the seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline.ablation import TOO_FEW, as_table, compare_arms, draw_gains, read_ablation, run_ablation
from pipeline.config import Config, ConfigError, dump_config
from pipeline.records.case import Case
from pipeline.records.paths import Paths

ROOT = Path(__file__).parents[1]
CASES, GROUPS = 48, 12


def scores(mean: float, seed: int, noise: float = 0.0) -> pd.DataFrame:
    """Scores that differ from case to case in the same way for every mean; noise: of the whole seed."""
    hard = np.random.default_rng(0).uniform(-0.1, 0.1, CASES)
    shift = np.random.default_rng(seed).normal(0.0, noise) if noise else 0.0
    return pd.DataFrame(
        {"group": [f"P{n % GROUPS}" for n in range(CASES)], "stratum": "", "dice": mean + hard + shift},
        index=pd.Index([f"case-{n:02d}" for n in range(CASES)], name="case_id"),
    )


def test_a_gain_above_the_spread_of_the_seeds_helps_and_a_loss_harms() -> None:
    arms = {"none": 0.70, "better": 0.75, "worse": 0.60, "same": 0.70}
    result = compare_arms({arm: [scores(mean, seed) for seed in (1, 2, 3)] for arm, mean in arms.items()})
    found = result["scores"]["dice"]
    assert {arm: found[arm].get("verdict") for arm in arms} == {
        "none": None, "better": "helps", "worse": "harms", "same": "no"
    }  # fmt: skip
    assert found["better"]["gain"] == pytest.approx(0.05)
    assert found["better"]["low"] == pytest.approx(0.05)
    assert (result["cases"], result["groups"]) == (CASES, GROUPS)
    assert "| dice | better | 0.7" in as_table("made", result)


def test_a_gain_over_few_groups_is_told_as_such() -> None:
    few = {arm: [scores(mean, seed).assign(group="P1") for seed in (1, 2)] for arm, mean in
           {"none": 0.70, "better": 0.75, "same": 0.70}.items()}  # fmt: skip
    found = compare_arms(few)["scores"]["dice"]
    assert (found["better"]["low"], found["better"]["verdict"]) == (None, TOO_FEW)
    assert found["same"]["verdict"] == "no"


def test_a_gain_within_the_spread_of_the_seeds_is_none() -> None:
    result = compare_arms(
        {
            "none": [scores(0.70, seed, 0.05) for seed in (1, 2, 3)],
            "luckier": [scores(0.72, seed, 0.05) for seed in (4, 5, 6)],
        }
    )
    assert result["scores"]["dice"]["luckier"]["verdict"] == "no"


def test_arms_scored_on_other_cases_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the 48 test cases of arm none"):
        compare_arms({"none": [scores(0.7, 1)], "other": [scores(0.7, 1).iloc[:-1]]})


# --- What is compared


def written(
    folder: Path, seeds: Sequence[int] = (1, 2), arms: dict[str, list[str]] | None = None, **study: object
) -> Path:
    """An ablation's file, with a segmenter's settings beside it."""
    (folder / "segmenter.yaml").write_text("dataset: made\ntrain: {steps: 7}\n")
    arms = {"none": [], "stain jitter": ["augment.stain_jitter=0.2"]} if arms is None else arms
    content = {"seeds": list(seeds), "arms": arms, "studies": {"made": {"config": "segmenter.yaml", **study}}}
    (folder / "ablation.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "ablation.yaml"


def test_the_committed_studies_can_be_used() -> None:
    assert [*read_ablation(ROOT / "configs" / "studies" / "ablation.yaml", ROOT).studies] == ["sample", "dsb2018"]
    assert [*read_ablation(ROOT / "configs" / "studies" / "prediction.yaml", ROOT).studies] == ["prediction"]


def test_an_arm_may_predict_otherwise_with_the_weights_of_the_first_and_of_two_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {
        "as is": [],
        "flips": ["train={members: ['{first}']}", "predict.flips=all"],
        "two": ["train={members: ['{first}', '{next}']}"],
    }
    seen = []

    def run_stage(name: str, config: Config, paths: Paths, *, with_needs: bool) -> None:
        seen.append((config.run, config.train.seed, config.train.members, config.predict.flips))

    monkeypatch.setattr("pipeline.ablation.run_stage", run_stage)
    monkeypatch.setattr("pipeline.ablation.read_parts", parts)
    with pytest.raises(FileNotFoundError):
        run_ablation(written(tmp_path, [1, 2], arms), root=tmp_path)
    assert seen[1:] == [
        ("ablation/made/as-is/seed-1", 1, (), "none"),
        ("ablation/made/as-is/seed-2", 2, (), "none"),
        ("ablation/made/flips/seed-1", None, ("ablation/made/as-is/seed-1",), "all"),
        ("ablation/made/flips/seed-2", None, ("ablation/made/as-is/seed-2",), "all"),
        ("ablation/made/two/seed-1", None, ("ablation/made/as-is/seed-1", "ablation/made/as-is/seed-2"), "none"),
        ("ablation/made/two/seed-2", None, ("ablation/made/as-is/seed-2", "ablation/made/as-is/seed-1"), "none"),
    ]


def test_everything_wrong_is_told_at_once_and_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.ablation.run_stage", lambda *_, **__: pytest.fail("something was run"))
    arms = {"no ne": [], "No-ne": ["train.step=3"], "learned": ["normalise.run={normaliser}"], "a/b": [],
            "other": ["split.folds=3"], "normaliser": [], "maker": ["train.task=reconstruction"]}  # fmt: skip
    with pytest.raises(ConfigError) as told:
        run_ablation(written(tmp_path, [1], arms, normaliser="absent.yaml"), root=tmp_path)
    for part in (
        "seeds: expected at least 2, each once, since a gain counts only above their spread, found [1]",
        "arms: expected a folder of its own for each name, found no-ne for 'no ne' and 'No-ne'",
        "found normaliser for the learned normaliser's run and 'normaliser'",
        "found 'a/b'",
        "did you mean train.steps?",
        "absent.yaml: expected a YAML file",
        "arm other: expected the images and the split of the first arm, found other settings of split",
        "arm maker: expected a segmenter, found train.task=reconstruction",
        "nothing was trained",
    ):
        assert part in str(told.value)


@pytest.mark.parametrize(
    ("seeds", "arms", "expected"),
    [
        ([], None, "seeds: expected at least 2"),
        ([3, 1, 3], None, r"seeds: expected at least 2, each once, .* found \[3, 1, 3\]"),
        ([-1, 1], None, "seeds.0: .*greater than or equal to 0"),
        ([1, 2], {}, "arms: expected at least 2, .* found none"),
        ([1, 2], {"none": []}, "arms: expected at least 2, .* found none"),
        ([1, 2], {"none": [], "b": ["normalise.run={normaliser}"]}, "expected its settings in studies.made.normaliser"),
    ],
)
def test_seeds_and_arms_are_checked(
    tmp_path: Path, seeds: list[int], arms: dict[str, list[str]] | None, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        read_ablation(written(tmp_path, seeds, arms), tmp_path)


def test_a_misspelt_study_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("arms: {none: []}\nstudys: {}\n")
    with pytest.raises(ConfigError, match="studys"):
        read_ablation(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=r"expected YAML with seeds, arms and studies, found: .*No such file"):
        read_ablation(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="expected studies out of made, found mad"):
        run_ablation(written(tmp_path), ["mad"], tmp_path)


# --- Running


class Stages:
    """Stages that write what an ablation reads of a finished run, and are interrupted once."""

    def __init__(self, killed_at: int = -1) -> None:
        self.killed_at = killed_at
        self.run: list[str] = []

    def __call__(self, name: str, config: Config, paths: Paths, *, with_needs: bool) -> None:
        if name == "split" or (paths.train / "stage.json").exists():
            return
        if len(self.run) == self.killed_at:
            self.killed_at = -1
            raise KeyboardInterrupt
        self.run.append(config.run)
        paths.train.mkdir(parents=True)
        (paths.train / "config.yaml").write_text(dump_config(config))
        (paths.train / "history.csv").write_text(f"step,loss\n{config.train.steps},0.5\n")
        manifest = {"stage": "train", "made_from": {}, "outputs": {}, "provenance": {"seconds": 12.5}}
        (paths.train / "stage.json").write_text(json.dumps(manifest))
        if name == "evaluate":
            paths.reports.mkdir(parents=True)
            assert config.train.seed is not None
            table = scores(0.7 + config.augment.stain_jitter, config.train.seed, 0.001)
            table.to_csv(paths.reports / "per_case.csv")


def parts(paths: Paths, normaliser_learns: str = "a") -> dict[str, list[Case]]:
    """The parts of two cases; the normaliser has a split of its own."""

    def case(name: str) -> Case:
        return Case(name, "made", f"{name}.png", None, "none", None, None, 8, 8, None, name)

    train = normaliser_learns if paths.run.endswith("/normaliser") else "a"
    return {"train": [case(train)], "validation": [], "test": [case("b")], "unlabelled": []}


def test_a_normaliser_that_learns_from_test_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "learned.yaml").write_text("dataset: made\ntrain: {task: reconstruction}\n")
    arms = {"none": [], "learned": ["normalise.method=learned", "normalise.run={normaliser}"]}
    stages = Stages()
    monkeypatch.setattr("pipeline.ablation.run_stage", stages)
    monkeypatch.setattr("pipeline.ablation.read_parts", lambda paths: parts(paths, "b"))
    with pytest.raises(ValueError, match=r"never saw the 1 test images, found 1 of them (.|\n)*Nothing was trained"):
        run_ablation(written(tmp_path, arms=arms, normaliser="learned.yaml"), root=tmp_path)
    assert not stages.run


def test_a_killed_ablation_carries_on_and_says_what_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "learned.yaml").write_text("dataset: made\nseed: 5\ntrain: {task: reconstruction, steps: 9}\n")
    learned = ["augment.stain_jitter=0", "normalise.method=learned", "normalise.run={normaliser}"]
    arms = {"none": learned[:1], "stain jitter": ["augment.stain_jitter=0.1"], "learned": learned}
    file = written(tmp_path, [1, 2], arms, normaliser="learned.yaml")
    stages = Stages(killed_at=3)
    monkeypatch.setattr("pipeline.ablation.run_stage", stages)
    monkeypatch.setattr("pipeline.ablation.read_parts", parts)
    with pytest.raises(KeyboardInterrupt):
        run_ablation(file, root=tmp_path)
    assert not (tmp_path / "reports" / "ablation" / "made.json").exists()
    run_ablation(file, root=tmp_path)
    home = "ablation/made/"
    runs = ["none/seed-1", "none/seed-2", "stain-jitter/seed-1", "stain-jitter/seed-2", "normaliser", "learned/seed-1",
            "learned/seed-2"]  # fmt: skip
    assert stages.run == [home + run for run in runs]
    found = json.loads((tmp_path / "reports" / "ablation" / "made.json").read_text())
    assert found["scores"]["dice"]["stain jitter"]["verdict"] == "helps"
    assert found["made"]["command"] == f"python -m pipeline ablation made --file {file}"
    assert found["made"]["trainings"]["learned"][1] == {"seed": 2, "steps": 7, "seconds": 12.5}
    assert found["made"]["normaliser"] == {"seed": 5, "steps": 9, "seconds": 12.5}
    table = (tmp_path / "reports" / "ablation" / "made.md").read_text()
    assert "| stain jitter | 1, 2 | 7, 7 | 12.5, 12.5 |" in table and "The normaliser was trained once" in table
    assert f"`{found['made']['command']}`: stainseg {found['made']['stainseg']}" in table
    assert (tmp_path / "reports" / "ablation" / "made.png").exists()
    run_ablation(file, root=tmp_path)
    assert not [*(tmp_path / "reports" / "ablation").glob("made~*")]
    run_ablation(written(tmp_path, [1, 2], dict([*arms.items()][:2])), root=tmp_path)
    (kept,) = (tmp_path / "reports" / "ablation").glob("made~*.json")
    assert json.loads(kept.read_text()) == found


def test_images_that_are_missing_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"study made: (.|\n)*Nothing was trained"):
        run_ablation(written(tmp_path), root=tmp_path)


def test_the_figure_has_a_panel_a_score_and_leaves_out_intervals_there_are_none_of(tmp_path: Path) -> None:
    entry = {"mean": 0.7, "spread": 0.01, "gain": 0.02, "low": 0.01, "high": 0.03, "verdict": "helps"}
    without = entry | {"low": None, "high": None, "verdict": "no"}
    result = {score: {"none": {"mean": 0.7, "spread": 0.01}, "a": entry, "b": without} for score in ("dice", "ap")}
    for count, name in ((2, "both"), (1, "one")):
        draw_gains("made", {"scores": dict([*result.items()][:count])}, tmp_path / f"{name}.png")
    both, one = (cv2.imread(str(tmp_path / f"{name}.png")) for name in ("both", "one"))
    assert both is not None and one is not None and both.shape[1] > one.shape[1]
    assert both.std() > 1
