"""Does a normaliser help? One segmenter, trained on some looks and tested on others, without and with each remedy.

Each arm of a study is a run of its own (ablation/<study>/<arm>/seed-<n>), made by the stages as any other run, so that
what is complete is not made again, and a killed ablation carries on. A learned normaliser is trained once a study, with
one seed: the spread of the seeds of its arm is that of the segmenter alone.
Writes reports/ablation/<study>.json, <study>.md and <study>.png.
"""

from __future__ import annotations

import platform
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import Field, ValidationError

from pipeline import __version__
from pipeline.config import Config, ConfigError, Settings, load_config
from pipeline.records.case import Case
from pipeline.records.files import write_json, write_text
from pipeline.records.former import former_kept
from pipeline.records.manifest import read_manifest
from pipeline.records.paths import Paths
from pipeline.records.split import read_parts
from pipeline.reporting.differences import draw_differences
from pipeline.runner import run as run_stage

SCORES = ("dice", "ap", "f1_70")
"""Columns of per_case.csv that are compared, where they hold numbers."""
RESAMPLES = 10_000
NORMALISER, FIRST, NEXT = "{normaliser}", "{first}", "{next}"
"""What stands in an arm's settings for the run of the study's learned normaliser, and for that of the first arm with
the same seed: "train={members: ['{first}']}" takes its weights and predicts otherwise; and with the next seed, after
the last the first: "train={members: ['{first}', '{next}']}" averages two."""
SAME_IN_ALL_ARMS = ("dataset", "ingest", "split", "seed")
"""Settings that decide which images are tested on: arms that differ in them cannot be paired."""
TOO_FEW = "too few groups"
"""Verdict where a gain is above twice the spread, and the test groups are too few for an interval."""
COLOURS = {TOO_FEW: "#9aa0a6", "helps": "#2f6f9f", "harms": "#c2553a", "no": "#6b7280"}


class Study(Settings):
    """One data set and how it is divided."""

    config: Path
    """The segmenter's settings."""
    settings: tuple[str, ...] = ()
    """Settings laid over them in every arm: which strata are tested on, for how many steps is trained."""
    normaliser: Path | None = None
    """Settings of the learned normaliser, which is trained on this study's own training part, once for all seeds."""
    normaliser_settings: tuple[str, ...] = ()
    """Settings laid over those."""


class Ablation(Settings):
    """What is compared."""

    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = (1, 2, 3)
    """One training for each; at least two, since a gain counts only above their spread."""
    arms: dict[str, tuple[str, ...]]
    """Settings of each remedy, at least one; the first arm is what the others are compared with. {normaliser} stands
    for the run of the study's learned normaliser, {first} for that of the first arm with the same seed, {next} for that
    with the next seed. A space in a name becomes '-' in its folder's."""
    studies: dict[str, Study] = Field(min_length=1)
    """Where they are compared."""


def read_ablation(file: Path, root: Path = Path()) -> Ablation:
    """Read a YAML file and check all of it: seeds, names, and the settings of every arm in every study.

    root: folder that the studies' files lie below. Raises ConfigError that names everything that cannot be used.
    """
    try:
        ablation = Ablation.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}" for one in error.errors()]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: expected YAML with seeds, arms and studies, found: {error}") from error
    else:
        problems = [*_problems_of_names(ablation), *_problems_of_settings(ablation, root)]
        if not problems:
            return ablation
    raise ConfigError(
        f"{file}: expected seeds, arms and studies, found {len(problems)} that cannot be used; nothing was trained:\n"
        + "\n".join(f"  {problem}" for problem in problems)
    )


def _problems_of_names(ablation: Ablation) -> Iterator[str]:
    twice = [seed for seed, count in Counter(ablation.seeds).items() if count > 1]
    if len(ablation.seeds) < 2 or twice:
        yield (
            "seeds: expected at least 2, each once, since a gain counts only above their spread, "
            f"found {list(ablation.seeds)}; e.g. [1, 2, 3]"
        )
    if len(ablation.arms) < 2:
        yield (
            "arms: expected at least 2, the first being what the others are compared with, "
            f"found {', '.join(ablation.arms) or 'none'}"
        )
    for kind, names in (("arms", ablation.arms), ("studies", ablation.studies)):
        folders: dict[str, list[str]] = {"normaliser": ["the learned normaliser's run"]} if kind == "arms" else {}
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", _folder(name)):
                yield f"{kind}: expected names of letters, digits, '_', '.', '-' and spaces, found {name!r}"
            # Many systems take names that differ in capitals only for one.
            folders.setdefault(_folder(name).casefold(), []).append(repr(name))
        for folder, same in folders.items():
            if len(same) > 1:
                yield f"{kind}: expected a folder of its own for each name, found {folder} for {' and '.join(same)}"


def _problems_of_settings(ablation: Ablation, root: Path) -> Iterator[str]:
    for name, study in ablation.studies.items():
        try:
            load_config(root / study.config, study.settings)
        except ConfigError as error:
            yield f"studies.{name}: {error}"
            continue
        if study.normaliser is not None:
            try:
                load_config(root / study.normaliser, study.normaliser_settings)
            except ConfigError as error:
                yield f"studies.{name}, normaliser: {error}"
        first: Config | None = None
        for arm, settings in ablation.arms.items():
            if study.normaliser is None and any(NORMALISER in setting for setting in settings):
                yield (
                    f"studies.{name}: arm {arm} applies a learned normaliser, expected its settings in "
                    f"studies.{name}.normaliser, found none"
                )
            try:
                config = _config_of_arm(ablation, name, arm, next(iter(ablation.seeds), 0), root)
            except ConfigError as error:
                yield f"studies.{name}, arm {arm}: {error}"
                continue
            first = first or config
            other = [key for key in SAME_IN_ALL_ARMS if getattr(config, key) != getattr(first, key)]
            if other:
                yield (
                    f"studies.{name}, arm {arm}: expected the images and the split of the first arm, found other "
                    f"settings of {', '.join(other)}; put them into studies.{name}.settings"
                )
            if config.train.task != "segmentation":
                yield f"studies.{name}, arm {arm}: expected a segmenter, found train.task={config.train.task}"


def _folder(arm: str) -> str:
    return arm.replace(" ", "-")


def _run_of_arm(study: str, arm: str, seed: int) -> str:
    return f"ablation/{study}/{_folder(arm)}/seed-{seed}"


def _run_of_normaliser(study: str) -> str:
    return f"ablation/{study}/normaliser"


def _config_of_arm(ablation: Ablation, name: str, arm: str, seed: int, root: Path) -> Config:
    study = ablation.studies[name]
    following = dict(zip(ablation.seeds, (*ablation.seeds[1:], *ablation.seeds[:1]), strict=True)).get(seed, seed)
    stands_for = {
        NORMALISER: _run_of_normaliser(name),
        FIRST: _run_of_arm(name, next(iter(ablation.arms)), seed),
        NEXT: _run_of_arm(name, next(iter(ablation.arms)), following),
    }
    own = list(ablation.arms[arm])
    for placeholder, run in stands_for.items():
        own = [setting.replace(placeholder, run) for setting in own]
    # Members have trained already, with this seed.
    trained = any(word in setting for setting in ablation.arms[arm] for word in (FIRST, NEXT))
    seeded = [] if trained else [f"train.seed={seed}"]
    return load_config(root / study.config, [*study.settings, *own, *seeded, f"run={_run_of_arm(name, arm, seed)}"])


def run_ablation(file: Path, studies: Sequence[str] = (), root: Path = Path()) -> None:
    """Train every arm of the studies (all by default) with every seed, score them and print and write the tables.

    Raises ValueError before anything is trained where the file cannot be used or images of a study are missing.
    """
    ablation = read_ablation(file, root)
    unknown = [name for name in studies if name not in ablation.studies]
    if unknown:
        raise ConfigError(f"{file}: expected studies out of {', '.join(ablation.studies)}, found {', '.join(unknown)}")
    wanted = list(dict.fromkeys(studies or ablation.studies))
    _split(ablation, wanted, root)
    for name in wanted:
        configs = {arm: [_run_arm(ablation, name, arm, seed, root) for seed in ablation.seeds] for arm in ablation.arms}
        result = compare_arms({arm: [_scores(config, root) for config in runs] for arm, runs in configs.items()})
        made = {"command": shlex.join(["python", "-m", "pipeline", "ablation", name, "--file", str(file)])}
        made |= _made_by(ablation, name, configs, root)
        folder = root / "reports" / "ablation"
        described = {"study": name, **ablation.model_dump(mode="json", include={"seeds", "arms"})}
        described |= ablation.studies[name].model_dump(mode="json") | result | {"made": made}
        table = as_table(name, result, made)
        with former_kept(folder / name, (".json", ".md", ".png")):
            write_json(folder / f"{name}.json", described)
            write_text(folder / f"{name}.md", table)
            draw_gains(name, result, folder / f"{name}.png")
        print(table)
        print(f"Written: {folder / name}.json, .md and .png")


def _split(ablation: Ablation, wanted: Sequence[str], root: Path) -> None:
    """Divide the images of every study, so that what is wrong is told before hours of training and not after.

    Raises ValueError where images are missing, or a learned normaliser would be trained on images that are tested on.
    """
    problems = []
    for name in wanted:
        config = _config_of_arm(ablation, name, next(iter(ablation.arms)), ablation.seeds[0], root)
        try:
            tested = {case.case_id for case in _parts(config, root)["test"]}
            if not tested:
                raise ValueError("expected cases in the test part, found none; set split.test_share or test_strata")
            if not any(_applies_learned(ablation, arm) for arm in ablation.arms):
                continue
            learned = _config_of_normaliser(ablation, name, root)
            parts = _parts(learned, root)
        except ValueError as error:
            problems.append(f"study {name}: {error}")
            continue
        seen = tested & {case.case_id for part in ("train", "validation") for case in parts[part]}
        if seen and learned.dataset == config.dataset:
            problems.append(
                f"study {name}: expected a normaliser that never saw the {len(tested)} test images, found {len(seen)} "
                f"of them in its own training or validation part; give studies.{name}.normaliser_settings the same "
                "settings of split as the segmenter's"
            )
    if problems:
        raise ValueError("\n".join([*problems, "Nothing was trained; name the studies that can be run, one or more"]))


def _parts(config: Config, root: Path) -> dict[str, list[Case]]:
    run_stage("split", config, Paths.of(config, root), with_needs=True)
    return read_parts(Paths.of(config, root))


def _run_arm(ablation: Ablation, name: str, arm: str, seed: int, root: Path) -> Config:
    """Bring one arm to its scores, and before it the learned normaliser that it applies; return its settings."""
    if _applies_learned(ablation, arm):
        learned = _config_of_normaliser(ablation, name, root)
        run_stage("train", learned, Paths.of(learned, root), with_needs=True)
    config = _config_of_arm(ablation, name, arm, seed, root)
    print(f"\n{name}, {arm}, seed {seed}")
    run_stage("evaluate", config, Paths.of(config, root), with_needs=True)
    return config


def _applies_learned(ablation: Ablation, arm: str) -> bool:
    return any(NORMALISER in setting for setting in ablation.arms[arm])


def _config_of_normaliser(ablation: Ablation, name: str, root: Path) -> Config:
    study = ablation.studies[name]
    assert study.normaliser is not None
    return load_config(root / study.normaliser, [*study.normaliser_settings, f"run={_run_of_normaliser(name)}"])


def _made_by(ablation: Ablation, name: str, configs: dict[str, list[Config]], root: Path) -> dict[str, Any]:
    """Return the software's versions, and seed, steps and seconds of each training, also of a learned normaliser's."""
    trainings = {
        arm: [_training(config, seed, root) for config, seed in zip(trained, ablation.seeds, strict=True)]
        for arm, trained in configs.items()
    }
    made: dict[str, Any] = {"stainseg": __version__, "python": platform.python_version(), "trainings": trainings}
    if any(_applies_learned(ablation, arm) for arm in ablation.arms):
        learned = _config_of_normaliser(ablation, name, root)
        made["normaliser"] = _training(learned, learned.seed, root)
    return made


def _training(config: Config, seed: int, root: Path) -> dict[str, Any]:
    """Return seed, steps (0 of members) and seconds of a training; of its last go, where it was interrupted."""
    from pipeline.training import steps_taken

    folder = Paths.of(config, root).train
    manifest = read_manifest(folder / "stage.json")
    return {
        "seed": seed,
        "steps": 0 if config.train.members else steps_taken(folder),
        "seconds": manifest.provenance.get("seconds") if manifest else None,
    }


def _scores(config: Config, root: Path) -> Any:
    """Return per_case.csv of a run with case_id as its index."""
    from pipeline.metrics.summary import read_per_case

    return read_per_case(Paths.of(config, root).reports / "per_case.csv").set_index("case_id").sort_index()


def compare_arms(scores: dict[str, list[Any]]) -> dict[str, Any]:
    """Compare every arm with the first, paired by case.

    scores: for each arm one table a seed (case_id as index, group, stratum and SCORES).
    Returns for each score and arm: mean over seeds and cases, spread (standard deviation over the seeds of the mean
    over cases), and, for all arms but the first, gain with low and high (95 %: whole groups drawn with replacement,
    seeds averaged in each case) and verdict. helps, harms: the gain is more than twice the larger spread of the two
    arms and its interval excludes 0; TOO_FEW: it is, and there is no interval; no: neither.
    Raises ValueError where the arms were not scored on the same cases, or nothing was scored.
    """
    first = next(iter(scores))
    cases = scores[first][0].index
    for arm, tables in scores.items():
        if any(not table.index.equals(cases) for table in tables):
            raise ValueError(f"arm {arm}: expected the {len(cases)} test cases of arm {first}, found others")
    groups = scores[first][0]["group"]
    result: dict[str, Any] = {"cases": len(cases), "groups": groups.fillna(groups.index.to_series()).nunique()}
    result["scores"] = {}
    shown = [score for score in SCORES if score in scores[first][0] and scores[first][0][score].notna().any()]
    if not shown:
        raise ValueError(f"arm {first}: expected scores of test cases ({', '.join(SCORES)}), found none")
    for score in shown:
        values = {arm: np.stack([table[score].to_numpy(float) for table in tables]) for arm, tables in scores.items()}
        spreads = {arm: float(np.nanmean(rows, axis=1).std(ddof=1)) for arm, rows in values.items()}
        entries = {}
        for arm, rows in values.items():
            entry: dict[str, Any] = {"mean": round(float(np.nanmean(rows)), 6), "spread": round(spreads[arm], 6)}
            if arm != first:
                gains = rows.mean(axis=0) - values[first].mean(axis=0)
                entry |= _gain(gains, groups, 2 * max(spreads[arm], spreads[first]))
            entries[arm] = entry
        result["scores"][score] = entries
    return result


def _gain(gains: np.ndarray, groups: Any, least: float) -> dict[str, Any]:
    """Mean of paired differences, its interval over groups (None where they are too few), and the verdict."""
    import pandas as pd

    from pipeline.metrics.summary import summarise_means

    table = pd.DataFrame({"case_id": groups.index, "group": groups.to_numpy(), "gain": gains})
    found = summarise_means(table, ["gain"], RESAMPLES)["gain"]
    mean, low, high = found["mean"], found["low"], found["high"]
    if abs(mean) <= least or (low is not None and low <= 0 <= high):
        verdict = "no"
    elif low is None:
        verdict = TOO_FEW
    else:
        verdict = "helps" if mean > 0 else "harms"
    return {"gain": mean, "low": low, "high": high, "verdict": verdict}


def as_table(study: str, result: dict[str, Any], made: dict[str, Any] | None = None) -> str:
    """Lay one study out as a Markdown table, with what made it below, where that is given."""
    lines = [
        f"{study}: {result['cases']} test images in {result['groups']} groups",
        "",
        "| score | arm | mean | spread of seeds | gain (95 %) | does it help? |",
        "|---|---|---|---|---|---|",
    ]
    for score, arms in result["scores"].items():
        for arm, entry in arms.items():
            gain = f"{entry['gain']:+.3f}" if "gain" in entry else ""
            if entry.get("low") is not None:
                gain += f" ({entry['low']:+.3f} to {entry['high']:+.3f})"
            cells = [score, arm, f"{entry['mean']:.3f}", f"{entry['spread']:.3f}", gain, entry.get("verdict", "")]
            lines.append(f"| {' | '.join(cells)} |")
    if made is not None:
        rows = [*made["trainings"].items(), *([("normaliser", [made["normaliser"]])] if "normaliser" in made else [])]
        lines += ["", "| trained | seeds | steps | seconds |", "|---|---|---|---|"]
        for what, trainings in rows:
            cells = [", ".join(str(one[key]) for one in trainings) for key in ("seed", "steps", "seconds")]
            lines.append(f"| {what} | {' | '.join(cells)} |")
        if "normaliser" in made:
            lines += ["", "The normaliser was trained once: the spread of its arm is that of the segmenter alone."]
        lines += ["", f"Made by `{made['command']}`: stainseg {made['stainseg']}, Python {made['python']}."]
    return "\n".join(lines) + "\n"


def draw_gains(study: str, result: dict[str, Any], file: Path) -> None:
    """Draw the gain of every arm over the first with its interval, one panel a score, into a PNG."""
    first, *arms = next(iter(result["scores"].values()))
    panels = {
        score: {
            arm: (entries[arm]["gain"], entries[arm]["low"], entries[arm]["high"], COLOURS[entries[arm]["verdict"]])
            for arm in arms
        }
        for score, entries in result["scores"].items()
    }
    title = f"{study}: gain over {first!r}, 95 % interval; blue helps, red harms, grey neither"
    draw_differences(title, arms, panels, file)
