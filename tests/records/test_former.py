"""What stood in a result's place is kept where it says something else, also by a command that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.records.files import write_json, write_text
from pipeline.records.former import former_kept

ENDINGS = ("/table.md", "/metrics.json", "/deeper/per_case.csv")


def write(result: Path, value: int, seconds: float) -> None:
    with former_kept(result, ENDINGS):
        write_text(result / "table.md", "one table\n")
        write_json(result / "metrics.json", {"dice": value, "made": {"seconds": seconds}})
        write_text(result / "deeper/per_case.csv", "a\n")


def names(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*")}


def test_the_same_again_leaves_nothing_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a", 1, 0.5)
    before = names(tmp_path)
    write(tmp_path / "a", 1, 0.7)
    assert names(tmp_path) == before and not capsys.readouterr().out


def test_what_differs_is_kept_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for value in (1, 2, 3):
        write(tmp_path / "a", value, 0.5)
    kept = sorted(tmp_path.glob("a~????????"))
    assert {(folder / "metrics.json").read_text().split(",")[0][-1] for folder in kept} == {"1", "2"}
    assert all((folder / ending[1:]).is_file() for folder in kept for ending in ENDINGS)
    assert all(f"kept: {folder}\n" in capsys.readouterr().out for folder in kept[:1])
    # What somebody made of it by hand is no less worth keeping.
    write_text(tmp_path / "a/metrics.json", "[my own notes")
    write(tmp_path / "a", 3, 0.5)
    assert "[my own notes" in {(folder / "metrics.json").read_text() for folder in tmp_path.glob("a~*")}


def test_a_command_that_fails_halfway_loses_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a", 1, 0.5)
    with pytest.raises(KeyboardInterrupt), former_kept(tmp_path / "a", ENDINGS):
        write_text(tmp_path / "a/table.md", "another table\n")
        raise KeyboardInterrupt
    (kept,) = tmp_path.glob("a~*")
    assert (kept / "table.md").read_text() == "one table\n" and (kept / "metrics.json").is_file()


def test_in_a_shared_folder_only_its_own_files_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_text(tmp_path / "b.md", "another study's")
    for text in ("1", "2"):
        with former_kept(tmp_path / "a.b", (".md", ".json")):
            write_text(tmp_path / "a.b.md", text)
    (kept,) = tmp_path.glob("*~*")
    assert kept.name.startswith("a.b~") and kept.suffix == ".md" and kept.read_text() == "1"
    assert f"kept: {kept}\n" in capsys.readouterr().out
