"""Judging with targets: real pairs, or the image as it was before it was spoilt."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.judging.methods import TIMED, Segmenter, head_of, made_by_all, methods_of, timing_of
from pipeline.judging.subject import LARGEST_FIT, Judged, Subject, few
from pipeline.metrics.normalisers import long_table, summarise_methods
from pipeline.metrics.stain import compare
from pipeline.pairs import Pairs, learnable

COMPARED_AT_ONCE = 4
"""Threads that compare images with their target: the metrics leave Python's lock alone for most of their time."""


def judge_pairs(subject: Subject) -> Judged:
    """Compare what every method makes of the test cases with their targets. Raises ValueError where there are none."""
    from tqdm import tqdm

    pairs = Pairs(subject.trained.config, subject.paths)
    paired = subject.kind == "paired"
    cases = [case for case in subject.parts["test"] if not paired or case.label_kind == "image"]
    if not cases:
        raise ValueError(f"{subject.paths.split_table}: expected test cases, found none; change split.test_share")
    training = few(learnable(subject.parts["train"], subject.trained.config), LARGEST_FIT)
    methods = methods_of(subject, training, lambda case: pairs.read(case)[1], lambda case: pairs.given(case)[0])
    segmenter = Segmenter.of(subject)
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(COMPARED_AT_ONCE) as threads:
        for case in tqdm(cases, desc="evaluate", unit="image", disable=None):
            given, target = pairs.given(case)
            made, labels = made_by_all(subject, methods, case, given)
            scores = threads.map(lambda image, target=target: compare(image, target), made)
            checks = segmenter(given, made) if segmenter else [{}] * len(made)
            rows += [label | score | check for label, score, check in zip(labels, scores, checks, strict=True)]
    kinds = {method.name: method.kind for method in methods}
    table = long_table(rows, [*kinds])
    settings = subject.config.evaluate
    content = summarise_methods(table, subject.config.run, kinds, "test", settings.resamples, subject.config.seed)
    unscored = len(subject.parts["test"]) - len(cases) + len(subject.parts["unlabelled"])
    head = head_of(subject, methods, content, unscored=unscored, left_out=0, reference=None)
    return Judged(table, head, timing_of(methods, [(case, pairs.given(case)[0]) for case in few(cases, TIMED)]))
