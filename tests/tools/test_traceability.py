"""The table of claims in docs/ is what its tool makes of the repository, and the tool believes nothing."""

import pytest

from atlas_edge.errors import InputError
from support import ROOT
from traceability import BEGIN, END, Claim, read_claims, table

PAGE = ROOT / "docs/bench.md"


def test_the_page_shows_what_the_repository_holds() -> None:
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    shown = rest.partition(END)[0].strip()
    assert shown == "\n".join(table(read_claims())), "run: python tools/traceability.py docs/bench.md"
    assert len(read_claims()) >= 10


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("test", "tests/test_docs.py::test_no_such_thing", "has no"),
        ("test", "tests/no_such_file.py::test_it", "has no"),
        ("figure", {"page": "README.md", "words": "a figure that nobody measured"}, "has no"),
        ("report", "docs/reports/none.md", "is not there"),
        ("budget", {"key": "candidate.openvino-int8.max_drop_pp", "value": 99.0}, "the claim says 99"),
        ("budget", {"key": "candidate.openvino-int8.max_drop_pp.more", "value": 3.0}, "= None"),
    ],
)
def test_what_is_not_there_is_refused(part: str, value: object, message: str) -> None:
    claim = Claim.model_validate({**read_claims()[0].model_dump(), part: value})
    with pytest.raises(InputError, match=message):
        table([claim])
