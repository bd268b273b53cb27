"""Methods side by side: closed-form means and paired differences, and laboratories as distributions."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.metrics.normalisers import (
    INPUT,
    Distances,
    best_classical,
    drawn_pixels,
    excludes_zero,
    long_table,
    mean_distances,
    pixels_of_each,
    split_half,
    summarise_distances,
    summarise_methods,
)
from pipeline.metrics.stain import energy_distance

KINDS = {INPUT: "input", "reinhard": "classical", "macenko": "classical", "mine": "run"}
GAINS = {INPUT: 0.0, "reinhard": 2.0, "macenko": 1.0, "mine": 5.0}


def rows(cases: int = 24, groups: int = 12, noise: float = 0.0) -> list[dict[str, object]]:
    generator = np.random.default_rng(1)
    return [
        {
            "case_id": f"c{number:02d}",
            "group": f"g{number % groups}",
            "stratum": "even" if number % 2 == 0 else "odd",
            "method": name,
            "status": "background" if name == "macenko" and number == 3 else "ok",
            "psnr": 20.0 + number + gain + noise * generator.normal(),
            "ciede2000": 10.0 - gain,
            "eosin_angle": float("nan") if number == 0 else 3.0,
        }
        for number in range(cases)
        for name, gain in GAINS.items()
    ]


def test_the_table_has_every_case_by_every_method_in_order() -> None:
    table = long_table(reversed(rows(3)), [*KINDS])
    assert list(table.columns) == [
        "case_id",
        "group",
        "stratum",
        "method",
        "psnr",
        "ciede2000",
        "eosin_angle",
        "status",
    ]
    assert table["method"].tolist() == [*KINDS] * 3
    assert table["case_id"].tolist() == sorted(table["case_id"])
    with pytest.raises(ValueError, match=r"every case once by every method, not so c00 by mine"):
        long_table([row for row in rows(3) if (row["case_id"], row["method"]) != ("c00", "mine")], [*KINDS])
    with pytest.raises(ValueError, match="not so c01 by reinhard"):
        long_table([*rows(3), rows(3)[5]], [*KINDS])


def test_means_differences_and_the_best_classical_method() -> None:
    content = summarise_methods(long_table(rows(), [*KINDS]), "mine", KINDS, "test")
    assert content["test"]["psnr"]["mean"] == pytest.approx(20 + 11.5 + 5)
    assert content["test"] == content["methods"]["mine"]["test"]
    assert content["by_stratum"]["even"]["psnr"] | {"low": 0, "high": 0} == {
        "mean": 36.0, "low": 0, "high": 0, "groups": 6, "cases": 12
    }  # fmt: skip
    assert content["methods"]["macenko"]["status"] == {"background": 1, "ok": 23}
    assert content["methods"][INPUT]["difference"] == {}
    # Cases differ widely and the difference never does: its interval is a point, since methods are resampled together.
    gain = content["methods"]["mine"]["difference"]["psnr"]
    assert gain == {"mean": 5.0, "low": 5.0, "high": 5.0, "groups": 12, "cases": 24, "better_groups": 12}
    assert content["methods"]["mine"]["difference"]["ciede2000"]["better_groups"] == 12
    assert content["best_classical"] == "reinhard" == best_classical(content, "ciede2000")
    assert content["beyond_classical"]["psnr"]["mean"] == pytest.approx(3.0)
    assert content["test"]["eosin_angle"]["cases"] == 23


def test_few_groups_have_no_interval_but_a_count_of_those_that_gained() -> None:
    content = summarise_methods(long_table(rows(24, 4), [*KINDS]), "mine", KINDS, "test")
    gain = content["methods"]["mine"]["difference"]["psnr"]
    assert (gain["low"], gain["high"], gain["better_groups"], gain["groups"]) == (None, None, 4, 4)
    assert not excludes_zero(gain)


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0.0, 0.1, False), (None, None, False)],
)
def test_an_interval_excludes_zero(low: float | None, high: float | None, told: bool) -> None:
    assert excludes_zero({"mean": 0.1, "low": low, "high": high}) is told


def clouds(images: int, shift: float, seed: int, pixels: int = 60) -> np.ndarray:
    """(images, pixels, 3) around a shift, each image around a centre of its own."""
    generator = np.random.default_rng(seed)
    return shift + generator.normal(0, 0.05, (images, 1, 3)) + generator.normal(0, 0.1, (images, pixels, 3))


def test_distances_of_images_give_the_energy_distance_of_their_pixels() -> None:
    test, reference = clouds(5, 0.3, 1), clouds(7, 0.0, 2)
    found = Distances.of(test, reference)
    expected = energy_distance(test.reshape(-1, 3), reference.reshape(-1, 3))
    assert found.energy(np.ones(5)) == pytest.approx(expected)
    some = np.array([1.0, 0.0, 1.0, 0.0, 0.0])
    expected = energy_distance(test[[0, 2]].reshape(-1, 3), reference.reshape(-1, 3))
    assert found.energy(some) == pytest.approx(expected)
    assert found.of_each()[3] == pytest.approx(energy_distance(test[3], reference.reshape(-1, 3)))


def test_halves_of_one_source_differ_by_little_and_by_more_than_nothing() -> None:
    reference = mean_distances(clouds(12, 0.0, 3), clouds(12, 0.0, 3))
    groups = [f"g{number // 2}" for number in range(12)]
    half = split_half(reference, groups, seed=1)
    assert 0.0 < half < 0.2
    assert half == split_half(reference, groups, seed=1)
    assert split_half(np.ones((4, 4)), ["a", "b", "c", "d"], seed=1) == 0.0
    with pytest.raises(ValueError, match="two groups"):
        split_half(reference, ["a"] * 12, seed=1)


def test_what_looks_like_the_reference_removes_the_excess() -> None:
    reference = clouds(24, 0.0, 4)
    tests = {INPUT: clouds(24, 0.5, 5), "half": clouds(24, 0.25, 5), "whole": clouds(24, 0.0, 5)}
    distances = {name: Distances.of(pixels, reference) for name, pixels in tests.items()}
    strata, groups = ["a", "b"] * 12, [f"g{number // 2}" for number in range(24)]
    half = split_half(distances[INPUT].reference, [str(number) for number in range(24)], seed=1)
    found = summarise_distances(distances, strata, groups, half)
    assert found[INPUT]["all"]["excess_removed"]["mean"] == 0.0
    # Far away the distance grows with the root of the shift at first, then evenly: half the way is 0.3 to 0.7 of it.
    assert 0.3 < found["half"]["all"]["excess_removed"]["mean"] < 0.7
    whole = found["whole"]["all"]
    assert 0.9 < whole["excess_removed"]["mean"] < 1.2
    assert whole["excess_removed"]["low"] < whole["excess_removed"]["mean"] < whole["excess_removed"]["high"]
    assert whole["energy_ratio"]["mean"] == pytest.approx(whole["energy_distance"]["mean"] / half, rel=1e-4)
    strata_mean = np.mean([found["half"][name]["energy_distance"]["mean"] for name in ("a", "b")])
    assert found["half"]["all"]["energy_distance"]["mean"] == pytest.approx(strata_mean, abs=1e-6)
    assert found["half"]["a"]["excess_removed"] | {"mean": 0} == {
        "mean": 0, "low": None, "high": None, "groups": 12, "cases": 12
    }  # fmt: skip


def test_without_excess_there_is_none_to_remove() -> None:
    distances = {INPUT: Distances.of(clouds(4, 0.0, 5), clouds(4, 0.0, 6))}
    found = summarise_distances(distances, ["a"] * 4, ["1", "2", "3", "4"], half=9.0)
    assert found[INPUT]["all"]["excess_removed"]["mean"] is None


def test_pixels_are_bounded_and_drawn_the_same_each_time() -> None:
    assert (pixels_of_each(1), pixels_of_each(64), pixels_of_each(100_000)) == (512, 128, 32)
    density = np.random.default_rng(0).random((50, 3))
    assert drawn_pixels(density, 20, 7).shape == drawn_pixels(density[:3], 20, 7).shape == (20, 3)
    assert np.array_equal(drawn_pixels(density, 20, 7), drawn_pixels(density, 20, 7))
    assert len(drawn_pixels(density[:0], 20, 7)) == 0
