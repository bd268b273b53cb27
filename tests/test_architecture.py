"""The house rules that a machine can hold: import direction, work at import, one table of stages."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.runner import needed_for
from pipeline.stages import STAGES

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "pipeline").rglob("*.py"))
LEVELS = {
    "__main__": 8,
    "commands": 7,
    "ablation": 6,
    "cross_validation": 6,
    "hidden_test": 6,
    "kaggle_notebook": 6,
    "peer_study": 6,
    "transfer": 6,
    "runner": 5,
    "stages": 5,
    "benchmarks": 5,
    "training": 4,
    "tasks": 3,
    "records": 1,
    "config": 0,
}
"""Rooms by height; every other noun stands at 2. A module imports downwards, or within its own level but not stages."""
HEAVY = (
    "torch",
    "monai",
    "segmentation_models_pytorch",
    "albumentations",
    "torchvision",
    "skimage",
    "sklearn",
    "pandas",
    "matplotlib",
)


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def level(module: str) -> int:
    parts = module.split(".")
    return LEVELS.get(parts[1], 2) if len(parts) > 1 else 0


def imports_of(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_imports_point_one_way(file: Path) -> None:
    module = name_of(file)
    ours = imports_of(file) & {name_of(other) for other in MODULES}
    upward = sorted(name for name in ours if level(name) > level(module))
    assert not upward, f"{module} imports upwards: {upward}"
    if module.startswith("pipeline.stages."):
        others = sorted(name for name in ours if name.startswith("pipeline.stages"))
        assert not others, f"a stage never imports a stage: {module} imports {others}"


def test_albumentations_is_imported_in_one_place() -> None:
    users = [
        name_of(file) for file in MODULES if any(name.split(".")[0] == "albumentations" for name in imports_of(file))
    ]
    assert users == ["pipeline.augmentation"]


def test_the_command_line_imports_nothing_heavy() -> None:
    script = "import sys, pipeline.__main__; print([m for m in sys.argv[1:] if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script, *HEAVY], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_nothing_happens_at_import(file: Path) -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Expr, ast.If)
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        assert isinstance(node, allowed), f"{name_of(file)}:{node.lineno} does work at import"
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"{name_of(file)}:{node.lineno} calls something at import"
        if isinstance(node, ast.If):
            assert ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")


def test_no_grab_bags_and_no_unfinished_work() -> None:
    assert not [name_of(file) for file in MODULES if re.fullmatch("(utils?|helpers?|common|misc)", file.stem)]
    assert not [name_of(file) for file in MODULES if "raise NotImplementedError" in file.read_text(encoding="utf-8")]


def test_stage_is_module_and_config_section_and_make_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for stage in STAGES:
        assert (ROOT / "pipeline" / "stages" / f"{stage.name}.py").exists()
        assert stage.name in Config.model_fields
        assert re.search(rf"(?m)^(STAGES.*|){stage.name}\b", makefile), f"make {stage.name} is missing"
        source = (ROOT / "pipeline" / "stages" / f"{stage.name}.py").read_text(encoding="utf-8")
        assert "Reads:" in source and "Writes:" in source


def test_stages_need_only_earlier_ones() -> None:
    names = [stage.name for stage in STAGES]
    for stage in STAGES:
        assert all(names.index(need) < names.index(stage.name) for need in stage.needs)
    assert [stage.name for stage in needed_for("submit")] == [
        "ingest", "split", "normalise", "augment", "train", "predict", "evaluate"
    ]  # fmt: skip


def test_the_readme_has_the_stages_in_their_order() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| `([a-z]+)` \|(.*)\|(.*)\|$", readme)
    table = [(name, summary.strip()) for name, summary, _ in rows if name in {stage.name for stage in STAGES}]
    assert table == [(stage.name, stage.summary) for stage in STAGES]
