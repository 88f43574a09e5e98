"""`atlas-package.json`: which bundles of one model a package holds, and whose model files serve two of them.

```
PACKAGE/atlas-package.json     the variants, and the SHA-256 of each one's manifest.json
PACKAGE/README.md              what is inside
PACKAGE/openvino-fp32/         a bundle
PACKAGE/openvino-bf16/         a bundle whose model files are those of openvino-fp32, where they lie once
PACKAGE/tensorrt-rtx-int8/     a bundle
PACKAGE/tensorrt-rtx-int8/fp16 the bundle inside it, a variant of its own
```

There are no links in it, so that a ZIP, a USB stick and Windows keep it as it is.
"""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from atlas_edge.errors import ChecksumError, InputError
from atlas_edge.manifest import ModelProvenance
from atlas_edge.spec import EncoderSpec, Precision, Target

VARIANTS = "atlas-package.json"
SCHEMA_VERSION = 1
OWN_FILES = frozenset({"README.md", "report.html", "report.json", "report.md", "selftest.safetensors"})
"""What every variant keeps itself; all else is a model file, which a runtime may open."""

VariantName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}(/fp16)?$")]
"""A folder of the package, or the bundle of FP16 inside one."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.(md|json)$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PackageFile(_Model):
    """A file beside the variants."""

    path: FileName
    sha256: Sha256


class Variant(_Model):
    """One bundle of a package.

    Attributes:
        name: Its folder.
        manifest_sha256: Of its `manifest.json`, which holds the hash of every file.
        model_in: The variant in whose folder its model files lie; None where they lie in its own.
    """

    name: VariantName
    target: Target
    precision: Precision
    manifest_sha256: Sha256
    model_in: VariantName | None = None


class LeftOut(_Model):
    """A variant that was asked for and is not here, and why."""

    name: VariantName
    reason: str


class PackageManifest(_Model):
    """The whole of `atlas-package.json`.

    Attributes:
        encoder: What every variant takes and gives.
        model: Where the weights of all of them came from.
        variants: From the most exact to the least.
        left_out: What could not be built, or missed its gate.
        files: Those that belong to no variant.
    """

    kind: Literal["atlas-edge package"] = "atlas-edge package"
    schema_version: Literal[1] = 1
    created_utc: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    encoder: EncoderSpec
    model: ModelProvenance
    variants: Annotated[tuple[Variant, ...], Field(min_length=1, max_length=64)]
    left_out: tuple[LeftOut, ...] = ()
    files: tuple[PackageFile, ...] = ()

    @model_validator(mode="after")
    def _names_fit(self) -> "PackageManifest":
        own = {variant.name for variant in self.variants if variant.model_in is None}
        if len({variant.name for variant in self.variants}) < len(self.variants):
            raise ValueError("two variants have the same name")
        if not {variant.model_in for variant in self.variants} - {None} <= own:
            raise ValueError("model files are said to lie where none are")
        return self

    def variant(self, name: str) -> Variant | None:
        """The variant of that name."""
        return next((variant for variant in self.variants if variant.name == name), None)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a bundle stands: in a package, as one of its variants."""

    package: Path
    variant: Variant

    @property
    def model_folder(self) -> Path:
        """The folder with its model files."""
        return self.package / (self.variant.model_in or self.variant.name)


def is_package(path: str | Path) -> bool:
    """Whether a folder says that it is a package."""
    return (Path(path) / VARIANTS).is_file()


def read_package(folder: Path) -> PackageManifest:
    """Read `atlas-package.json` without looking at the variants.

    Raises:
        InputError: Missing, not JSON, of another schema version, or with fields that do not fit.
    """
    path = folder / VARIANTS
    if not path.is_file():
        raise InputError(f"{folder} is no package: it has no {VARIANTS}", hint="atlas-export pack writes one")
    text = path.read_bytes()
    try:
        data = json.loads(text)
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{path} has schema version {version}, this atlas-edge reads {SCHEMA_VERSION}",
                hint="install the atlas-edge that wrote it, or pack it again",
            )
        return PackageManifest.model_validate_json(text)
    except (ValueError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise InputError(f"{path} cannot be read: {what}", hint="pack the bundles again") from error


def variant_folder(package: Path, name: str) -> Path:
    """The folder of a variant.

    Raises:
        ChecksumError: It is missing.
        InputError: It is a link that leads out of the package.
    """
    folder = package / name
    if not folder.is_dir():
        raise ChecksumError(
            f"{package}: {name} is missing", hint="copy the package again, or pack the bundles that are left"
        )
    if folder.resolve() != package.resolve() / name:
        raise InputError(f"{folder} leads out of the package", hint="do not use it: copy the package again")
    return folder


def place_in_package(folder: Path) -> Place | None:
    """Where a bundle stands in the package around it; None for one that is in none.

    Raises:
        InputError: The package around it cannot be read.
    """
    folder = folder.resolve()
    for package in folder.parents[:2]:
        if is_package(package):
            variant = read_package(package).variant(folder.relative_to(package).as_posix())
            return None if variant is None else Place(package, variant)
    return None


def package_sha256(folder: Path) -> str:
    """What tells a package from every other: the SHA-256 of its manifest, which holds those of its bundles."""
    return hashlib.sha256((folder / VARIANTS).read_bytes()).hexdigest()
