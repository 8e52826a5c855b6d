"""Budgets are read as they are typed."""

import pytest

from inf_nerf.errors import InputError
from inf_nerf.render.budget import budget_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64MB", 64_000_000), ("64 mb", 64_000_000), ("1.5GiB", 3 * 2**29), ("512KiB", 2**19), ("250000", 250_000),
        ("7B", 7), ("25%", 500), (".5%", 10), ("100%", 2000),
    ],
)  # fmt: skip
def test_sizes_and_shares_of_the_model(text: str, expected: int) -> None:
    assert budget_bytes(text, 2000) == expected


@pytest.mark.parametrize("text", ["", "MB", "64 apples", "-3MB", "1e6", "64MB%", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="write it as 64MB"):
        budget_bytes(text, 2000)
