"""What licences ask of whoever makes something of weights or tiles, and gives it on."""

import re
from collections.abc import Iterable

OTHER = "other"
# What well-known licences ask for. One that asks for all that another does, and more, is the stricter one.
_NOTICE = frozenset({"notice"})
_CHANGES = _NOTICE | {"changes"}
_KNOWN = {
    "cc0-1.0": frozenset[str](),
    "unlicense": frozenset[str](),
    "mit": _NOTICE,
    "isc": _NOTICE,
    "bsd-2-clause": _NOTICE,
    "bsd-3-clause": _NOTICE,
    "apache-2.0": _CHANGES,
}
_NAME = re.compile(r"[a-z0-9.+-]{1,40}")
_CREATIVE_COMMONS = re.compile(r"cc-by((?:-nc|-nd|-sa)*)-\d\.\d")


def strictest_licence(licences: Iterable[str | None]) -> str:
    """The one licence that asks for all that the others do.

    Args:
        licences: Names, in any spelling of SPDX's; None where one is not stated.

    Returns:
        Its name as the Hugging Face Hub writes it, such as `cc-by-nc-4.0`, or `other`: where none is above all others,
        one is not stated, or it has no name but a text.
    """
    asked: dict[str, frozenset[str]] = {}
    for licence in licences:
        if licence is None:
            return OTHER
        name = "-".join(licence.lower().split())
        asked[name] = _asks_for(name)
    strictest = [
        name for name, terms in asked.items() if all(terms > others for other, others in asked.items() if other != name)
    ]
    return strictest[0] if strictest and _NAME.fullmatch(strictest[0]) else OTHER


def why_not_shared(licence: str | None) -> str | None:
    """Why nobody but a reader of the licence can say whether what was made under it may be given on; None where it may.

    Args:
        licence: A name in any spelling of SPDX's, a text, or None where it is not stated.
    """
    if licence is None:
        return "states no licence"
    name = "-".join(licence.lower().split())
    if "nd" in name.split("-") and _CREATIVE_COMMONS.fullmatch(name):
        return f"is under {licence}, which bars what is made of it"
    if name in _KNOWN or _CREATIVE_COMMONS.fullmatch(name):
        return None
    return f"is under terms that are not known here ({licence})"


def _asks_for(licence: str) -> frozenset[str]:
    commons = _CREATIVE_COMMONS.fullmatch(licence)
    if commons is not None:
        return _CHANGES | set(commons[1].split("-")) - {""} | {"attribution"}
    # Of any other it is known only that it asks for something of its own.
    return _KNOWN.get(licence, frozenset({licence}))
