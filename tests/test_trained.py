"""A trained run's folder: what is told where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.trained import NEEDED, named_run, open_run


def put(root: Path, run: str, names: tuple[str, ...]) -> None:
    (root / "data" / "train" / run).mkdir(parents=True)
    for name in names:
        (root / "data" / "train" / run / name).touch()


def test_only_finished_runs_are_offered_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "sample", NEEDED)
    put(tmp_path, "normalisers/unet", NEEDED)
    put(tmp_path, "normalisers/failed", tuple(name for name in NEEDED if name != "best.pt"))
    put(tmp_path, "sample/fold-1", NEEDED)
    for missing in ("absent", "normalisers/absent", "absent/deeper/still"):
        with pytest.raises(ValueError, match=r"runs normalisers/unet, sample, sample/fold-1$"):
            open_run(tmp_path / "data" / "train" / missing)
    with pytest.raises(ValueError, match=r"elsewhere/absent: expected a trained run.*make one with `make train`"):
        open_run(tmp_path / "elsewhere" / "absent")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^data/train/unet: .*there are the trained runs normalisers/unet, sample"):
        named_run("unet")
