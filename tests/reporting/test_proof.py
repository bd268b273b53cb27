"""The split's proof in words: what is known is told, what is not is listed, nothing is lost."""

from __future__ import annotations

from pipeline.reporting.proof import describe_proof, flatten


def test_a_sound_split() -> None:
    proof = describe_proof({"groups_in_two_parts": [], "ungrouped_split": {"test_cases": 10, "leaked": 7.08}})
    assert [(check.text, check.sound) for check in proof.checks] == [
        ("No group lies in two parts.", True),
        (
            "A split by image, without groups, would have put 7 of 10 test images "
            "beside a training image of the same group.",
            None,
        ),
    ]
    assert proof.rest == []


def test_a_fold_says_what_is_held_out() -> None:
    proof = describe_proof({"held_out": {"cases": 123, "groups": 40}})
    assert [check.text for check in proof.checks] == [
        "One fold is tested on; of the 123 images of the test part, none takes part."
    ]
    assert proof.rest == []


def test_a_leak_is_told() -> None:
    proof = describe_proof({"groups_in_two_parts": ["a"], "identical_images_across_parts": [["a", "b"], ["c", "d"]]})
    assert [check.text for check in proof.checks] == [
        "1 group lies in two parts.",
        "2 pairs of identical images (turned or mirrored too) lie in two parts.",
    ]
    assert [check.sound for check in proof.checks] == [False, False]


def test_unlabelled_and_largest_group() -> None:
    entries = {
        "unlabelled": {"cases": 65, "in_a_labelled_group": 3},
        "largest_group": {"cases": 16, "share": 0.026, "group": "x"},
    }
    texts = [check.text for check in describe_proof(entries).checks]
    assert texts == [
        "The largest group holds 16 images, 2.6 % of all.",
        "3 of 65 images without truth belong to a group with truth.",
    ]
    assert describe_proof({"unlabelled": {"cases": 0, "in_a_labelled_group": 0}}) == describe_proof({})


def test_other_shapes_go_to_the_rest() -> None:
    proof = describe_proof({"schema_version": 1, "strata": {"pink": {"train": 3}}, "parts": [1, 2], "largest_group": 4})
    assert proof.checks == [] and proof.parts == {} and proof.strata == {}
    assert sorted(proof.rest) == [("largest_group", 4), ("parts", "1, 2"), ("strata, pink, train", 3)]


def test_flatten() -> None:
    assert flatten("a", {"b": {"c": None}, "d": [], "e": [[1]], "f": list(range(2000))}) == [
        ("a, b, c", None), ("a, d", "none"), ("a, e", "1 entries"), ("a, f", "2,000 entries"),
    ]  # fmt: skip
