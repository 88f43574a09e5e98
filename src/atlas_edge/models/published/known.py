"""Known encoders: what their files do not say of them, read from `known.toml` beside this file."""

import difflib
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from atlas_edge.errors import InputError, UsageError

_FILE = Path(__file__).with_name("known.toml")
_SHIPPED = {
    "yes": "students may be shipped under its terms",
    "non-commercial": "students for non-commercial use only",
    "no": "no student may be shipped: the licence bars derivatives, or its use as a teacher",
    None: "whether students may be shipped was not checked",
}


class Known(BaseModel):
    """One encoder; a fact that no source states is None.

    Attributes:
        name: What the user types.
        title: What it is called.
        hub: Its repository on the Hugging Face hub.
        aliases: Other repositories with the same network.
        revision: A commit, where a source states it.
        architecture: Of timm.
        arguments: For it, in the form of `model_args`.
        pooling: Of the tokens, as published.
        mean: Per-channel mean on the 0-1 scale.
        std: Per-channel standard deviation on the 0-1 scale.
        tile_px: Side of its tiles, pixels.
        mpp: µm per pixel that it is meant for, the usual one first.
        licence: SPDX name, or the name that its card has.
        students: Whether a student of this teacher may be shipped.
        gated: Whether access must be asked for.
        prefix: What stands before the names of its tensors in its file.
        aside: Prefixes of tensors of that file that are no part of the encoder.
        cannot: Why its weights cannot be loaded.
        note: What a user should know besides.
        unchecked: Facts that were derived, and compared with no file of its own.
        sources: Where each fact was read: `network`, `pooling`, `statistics`, `mpp`, `licence`, `students`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    hub: str | None = None
    aliases: tuple[str, ...] = ()
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    architecture: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    pooling: Literal["cls", "cls+mean", "avg"] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    tile_px: int | None = Field(default=None, gt=0)
    mpp: tuple[float, ...] = ()
    licence: str | None = None
    students: Literal["yes", "non-commercial", "no"] | None = None
    gated: bool | None = None
    prefix: str = ""
    aside: tuple[str, ...] = ()
    cannot: str | None = None
    note: str | None = None
    unchecked: tuple[str, ...] = ()
    sources: dict[str, str]

    @property
    def students_said(self) -> str:
        """Whether students may be shipped, in words."""
        return _SHIPPED[self.students]

    def must_load(self) -> None:
        """Refuse an encoder whose weights cannot be loaded.

        Raises:
            InputError: It is one.
        """
        if self.cannot is not None:
            raise InputError(
                f"{self.title} cannot be loaded: {self.cannot}", hint="docs/encoders.md lists the encoders that can"
            )


@cache
def known_encoders() -> Mapping[str, Known]:
    """All of them by name, sources spelt out."""
    table = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    found = {}
    for name, entry in table["encoders"].items():
        sources = {fact: table["sources"].get(source, source) for fact, source in entry["sources"].items()}
        found[name] = Known.model_validate(entry | {"name": name, "sources": sources})
    return found


def find_known(name: str) -> Known:
    """The encoder of a name (`virchow2`) or of a repository on the hub (`paige-ai/Virchow2`).

    Raises:
        UsageError: There is none.
    """
    found = known_encoders().get(name.lower()) or known_of_hub(name.removeprefix("hf-hub:"))
    if found is None:
        near = difflib.get_close_matches(name.lower(), known_encoders(), n=3) or known_encoders()
        raise UsageError(f"no known encoder is called {name!r}", hint=f"choose one of {', '.join(near)}")
    return found


def known_of_hub(repository: str) -> Known | None:
    """The encoder of a repository on the hub, in any spelling of capitals; None where it is not known."""
    wanted = repository.lower()
    for known in known_encoders().values():
        if wanted in {name.lower() for name in (known.hub, *known.aliases) if name is not None}:
            return known
    return None
