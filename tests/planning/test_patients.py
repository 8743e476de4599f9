"""Names of cases that may be one person's are noticed, numbers of cases are not taken for them."""

from __future__ import annotations

import pytest

from scripts.planning.patients import same_person


@pytest.mark.parametrize(
    "names",
    [
        [f"p{i:02d}_{letter}" for i in range(5) for letter in "ab"],
        [f"p{i:02d}{letter}" for i in range(5) for letter in "ab"],
        [f"patient{i:03d}_frame{frame:02d}" for i in range(30) for frame in (1, 12)],
        [f"sub-{i:02d}_ses-{session}_T1w" for i in range(6) for session in (1, 2)],
        [f"{i:03d}-{visit}" for i in range(20) for visit in (1, 2)],
        [f"Image_{i:02d}{eye}" for i in range(14) for eye in "LR"],
        [f"P{i}_{number:03d}" for i in range(20) for number in range(60)],  # slices
        ["anna_pre", "anna_post", "bob_pre", "bob_post"],
        ["p01_a", "p01_b", *(f"p{i:02d}" for i in range(2, 50))],
    ],
)
def test_one_persons_images(names: list[str]) -> None:
    found = same_person(names)
    assert 2 <= len(found) <= 3 and set(found) <= set(names)


@pytest.mark.parametrize(
    "names",
    [
        [f"hippocampus_{i:03d}" for i in range(60)],
        [f"hippocampus_{i}" for i in range(60)],
        [f"BraTS2021_{i:05d}" for i in range(60)],
        [f"case_{i}" for i in range(9)],
        [f"site{site}_{i:03d}" for i in range(5) for site in range(3)],
        [f"site{site}_{i}" for i in range(50) for site in range(3)],
        [f"TCGA-{site:02d}-{i:04d}" for i in range(3) for site in range(20)],
        [f"CHNCXR_{i:04d}_{i % 2}" for i in range(60)],
        [f"{i}_training" for i in range(20)],
        [f"s{i:04d}" for i in range(60)],
        [f"liver_{i}" for i in range(5)] + [f"spleen_{i}" for i in range(5)],
        ["a", "b"],
        [],
    ],
)
def test_single_images(names: list[str]) -> None:
    assert same_person(names) == []
