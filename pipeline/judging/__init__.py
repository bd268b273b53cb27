"""Judging a run that makes images: it, its input and other methods side by side on the same test cases."""

from __future__ import annotations

from pipeline.judging.methods import check_names
from pipeline.judging.paired import judge_pairs
from pipeline.judging.subject import Judged, Subject, other_runs, segmenter_run
from pipeline.judging.unpaired import judge_laboratories

__all__ = ["Judged", "Subject", "judge", "other_runs", "segmenter_run"]


def judge(subject: Subject) -> Judged:
    """Judge a run and what stands beside it on the test part; write what each makes to reports/<run>/normalised/.

    With targets (real pairs, or the image before it was spoilt) images are compared with them; without, the test strata
    with the reference strata. Raises ValueError where names clash, or there is nothing to judge.
    """
    check_names(subject)
    return judge_laboratories(subject) if subject.kind == "unpaired" else judge_pairs(subject)
