"""What licences say of giving on what was made under them."""

import pytest

from atlas_edge.models.published.licences import why_not_shared


@pytest.mark.parametrize("licence", ["Apache-2.0", "mit", "CC0-1.0", "CC BY 4.0", "cc-by-nc-sa-4.0"])
def test_what_known_terms_allow_is_shared(licence: str) -> None:
    assert why_not_shared(licence) is None


@pytest.mark.parametrize(
    ("licence", "why"),
    [
        (None, "states no licence"),
        ("cc-by-nc-nd-4.0", "bars what is made of it"),
        ("repository LICENSE is GPL-3.0; treat as not cleared", "not known here"),
        ("other", "not known here"),
    ],
)
def test_what_nobody_but_its_reader_can_judge_is_not(licence: str | None, why: str) -> None:
    assert why in str(why_not_shared(licence))
