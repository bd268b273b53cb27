"""Fetching and handing in: from a folder it works, without credentials it says what to do."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from pipeline.config import load_config
from pipeline.kaggle import fetch, hand_in, how_to_get
from pipeline.records.paths import Paths


def test_files_are_taken_from_a_folder_and_a_second_time_left_alone(tmp_path: Path, capsys) -> None:
    source = tmp_path / "download"
    (source / "deep").mkdir(parents=True)
    (source / "stage1_train.zip").write_bytes(b"zip")
    (source / "deep" / "classes.csv").write_text("a,b\n")
    fetch("dsb2018", source, tmp_path / "raw")
    assert (tmp_path / "raw/dsb2018/stage1_train.zip").read_bytes() == b"zip"
    assert (tmp_path / "raw/dsb2018/deep/classes.csv").exists()
    assert "make train CONFIG=configs/dsb2018.yaml" in capsys.readouterr().out
    fetch("dsb2018", source, tmp_path / "raw")
    (source / "deep" / "classes.csv").write_text("a,c\n")
    with pytest.raises(ValueError, match=r"with another content.*classes\.csv"):
        fetch("dsb2018", source, tmp_path / "raw")


def test_a_file_of_another_content_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "download").mkdir()
    (tmp_path / "download" / "classes.csv").write_text("new one\n")
    (tmp_path / "raw/dsb2018").mkdir(parents=True)
    (tmp_path / "raw/dsb2018/classes.csv").write_text("old\n")
    with pytest.raises(ValueError, match=r"with another content.*classes\.csv"):
        fetch("dsb2018", tmp_path / "download", tmp_path / "raw")
    assert (tmp_path / "raw/dsb2018/classes.csv").read_text() == "old\n"


def test_without_credentials_the_files_and_their_place_are_named(tmp_path: Path, monkeypatch) -> None:
    kagglehub = pytest.importorskip("kagglehub")

    def refused(name: str) -> str:
        raise kagglehub.exceptions.UnauthenticatedError

    monkeypatch.setattr(kagglehub, "competition_download", refused)
    with pytest.raises(
        ValueError, match=r"(?s)could not be downloaded.*kaggle\.json.*stage1_train\.zip.*FROM=<folder>"
    ):
        fetch("dsb2018", None, tmp_path / "raw")
    assert "stage1_sample_submission.csv" in how_to_get("dsb2018", tmp_path)


def test_what_kaggle_serves_is_taken(tmp_path: Path, monkeypatch) -> None:
    kagglehub = pytest.importorskip("kagglehub")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "stage1_test.zip").write_bytes(b"zip")
    monkeypatch.setattr(kagglehub, "competition_download", lambda name: str(tmp_path / "cache"))
    fetch("dsb2018", None, tmp_path / "raw")
    assert (tmp_path / "raw/dsb2018/stage1_test.zip").exists()


def test_unknown_data_sets_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one of sample, dsb2018"):
        fetch("dsb2019", None, tmp_path)
    with pytest.raises(ValueError, match="found an empty folder"):
        (tmp_path / "empty").mkdir()
        fetch("dsb2018", tmp_path / "empty", tmp_path / "raw")


def test_nothing_is_handed_in_without_a_submission_or_a_competition(tmp_path: Path) -> None:
    config = load_config(None)
    with pytest.raises(ValueError, match="make submission"):
        hand_in(config, Paths.of(config, tmp_path))
    (tmp_path / "reports/sample").mkdir(parents=True)
    (tmp_path / "reports/sample/submission.csv").write_text("ImageId,EncodedPixels\n")
    with pytest.raises(ValueError, match=r"submit\.competition"):
        hand_in(config, Paths.of(config, tmp_path))


def test_a_network_that_is_not_there_is_no_want_of_credentials(tmp_path: Path, monkeypatch) -> None:
    requests = pytest.importorskip("requests")

    def unreachable(*_: object) -> None:
        raise requests.exceptions.ConnectionError("Name or service not known")

    client = ModuleType("kaggle")
    client.api = SimpleNamespace(competition_submit=unreachable)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kaggle", client)
    config = load_config(None, ["dataset=dsb2018"])
    paths = Paths.of(config, tmp_path)
    paths.reports.mkdir(parents=True)
    (paths.reports / "submission.csv").write_text("ImageId,EncodedPixels\n")
    with pytest.raises(ValueError, match=r"submission\.csv was not handed in: Kaggle could not be reached") as caught:
        hand_in(config, paths)
    assert "credentials" not in str(caught.value)
