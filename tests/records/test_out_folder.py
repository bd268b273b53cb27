"""Results never mix with, or take the place of, what is something else's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.records.findings import FaultyFile
from pipeline.records.out_folder import check_out, refuse_foreign, write_anew


def test_a_folder_that_is_new_empty_or_of_the_same_command_is_taken(tmp_path: Path) -> None:
    (tmp_path / "ours.png").touch()
    (tmp_path / ".journal").touch()
    refuse_foreign(tmp_path, {"ours.png", "later.png"})
    refuse_foreign(tmp_path / "new" / "below", ())
    assert not (tmp_path / "new").exists()


def test_files_and_what_others_wrote_are_refused(tmp_path: Path) -> None:
    (tmp_path / "note").touch()
    with pytest.raises(ValueError, match="note: expected a folder, found a file; name another folder"):
        check_out(tmp_path / "note")
    with pytest.raises(ValueError, match=r"below: expected a folder, found that .*note is a file"):
        check_out(tmp_path / "note" / "below")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="gone: expected a folder, found a link to nothing"):
        check_out(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"found 2 other files: gone, note; name another folder, or remove them"):
        refuse_foreign(tmp_path, {"ours.png"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(ValueError, match="expected a folder that can be written to"):
        check_out(tmp_path / "below")


def test_only_the_same_is_written_again(tmp_path: Path) -> None:
    for _ in range(2):
        write_anew(tmp_path / "a", b"first")
    with pytest.raises(FaultyFile, match="never overwritten: expected no file, or the same, found another at"):
        write_anew(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
