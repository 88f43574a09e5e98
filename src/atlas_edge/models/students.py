"""The student registry: names that build a timm network without any file, and students that ship in the package."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from atlas_edge.errors import UsageError
from atlas_edge.models.timm_config import IMAGENET_MEAN, IMAGENET_STD
from atlas_edge.spec import Pooling

# H&E at 20x; what Atlas 2-S was trained at is not published, so this is our choice.
STUDENT_MPP = 0.5
STUDENT_TILE_PX = 224
PATCHES = (8, 14, 16)
# Of the RudolfV-2 family, as published.
_HE_MEAN, _HE_STD = (0.7072, 0.5787, 0.7036), (0.2119, 0.2301, 0.1775)


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """A registry entry.

    Attributes:
        name: What the user types.
        architecture: timm architecture.
        patch: Patch side, pixels.
        registers: Number of register tokens.
        arguments: For the architecture, beside patch side and registers.
        pooling: How it embeds.
        mean: Per-channel mean on the 0-1 scale.
        std: Per-channel standard deviation on the 0-1 scale.
        rotary: timm architecture that stands in at patch 8; None where the architecture takes all patch sides.
        summary: One line for `--help` and errors.
    """

    name: str
    architecture: str
    patch: int = 14
    registers: int = 4
    arguments: Mapping[str, Any] = field(default_factory=dict)
    pooling: Pooling = "cls"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    rotary: str | None = None
    summary: str = ""

    def shape(self) -> dict[str, Any]:
        """What `timm.create_model` takes beside the tile size."""
        registers = "reg_tokens" if self.architecture != self.rotary else "num_reg_tokens"
        return {"patch_size": self.patch, registers: self.registers, **self.arguments}

    def at_patch_8(self) -> "Student":
        """In the shape of its nearest published analogue, RudolfV-2-S and -B (facts in `known.toml`)."""
        if self.rotary is None:
            return replace(self, patch=8)
        return replace(
            self,
            architecture=self.rotary,
            patch=8,
            registers=8,
            arguments={"global_pool": "token"},
            pooling="cls+mean",
            mean=_HE_MEAN,
            std=_HE_STD,
        )


STUDENTS: dict[str, Student] = {
    student.name: student
    for student in (
        Student(
            name="atlas2-s",
            architecture="vit_small_patch14_reg4_dinov2",
            rotary="vit_small_patch16_dinov3",
            summary="ViT-S, 22 M parameters",
        ),
        Student(
            name="atlas2-b",
            architecture="vit_base_patch14_reg4_dinov2",
            rotary="vit_base_patch16_dinov3",
            summary="ViT-B, 86 M parameters",
        ),
        Student(
            name="atlas2",
            architecture="vit_gigantic_patch14_224",
            patch=8,
            # ViT-G's own MLP, 8192 wide, makes 1.84 B parameters.
            arguments={"mlp_ratio": 9216 / 1664},
            summary="ViT-G/8, 2.0 B parameters, the teacher's shape",
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedStudent:
    """A trained student whose files lie inside the package.

    Attributes:
        name: What the user types.
        weights_sha256: Hash of its `model.safetensors`, checked before it is opened.
        config_sha256: Hash of its `config.json`.
        summary: One line for `--help` and errors.
    """

    name: str
    weights_sha256: str
    config_sha256: str
    summary: str

    @property
    def folder(self) -> Path:
        """Its folder in timm's form."""
        return Path(__file__).parents[1] / "weights" / self.name


EMBEDDED: dict[str, EmbeddedStudent] = {
    student.name: student
    for student in (
        EmbeddedStudent(
            name="atlas2-demo",
            weights_sha256="021df2388f2cc4fb4a5019b7d75fb8dee63f03e70c7844567609baa73813a036",
            config_sha256="f6a62a1ab5369e787dc3f956d1e16e9701f4d06911480e2cd71961be60d7f851",
            summary="ViT-Ti/16, 5.5 M parameters, a demonstration",
        ),
    )
}

# These are meant wherever a model is named; a folder of such a name is written with ./ before it.
OWN_NAMES = frozenset({*STUDENTS, *EMBEDDED})


def find_student(name: str, *, patch: int | None = None, registers: int | None = None) -> Student:
    """Look a student up, with its patch side or register tokens changed where asked.

    Raises:
        UsageError: No such name, a patch side other than 8, 14 or 16, or a negative number of registers.
    """
    if name not in STUDENTS:
        raise UsageError(f"no student is called {name!r}", hint=f"choose one of {', '.join(STUDENTS)}")
    student = STUDENTS[name]
    if patch is not None and patch not in PATCHES:
        raise UsageError(f"patch side {patch} px is not offered", hint="choose --patch 8, 14 or 16")
    if registers is not None and registers < 0:
        raise UsageError(f"{registers} register tokens", hint="give --registers 0 or more")
    if patch == 8:
        student = student.at_patch_8()
    elif patch is not None:
        student = replace(student, patch=patch)
    return student if registers is None else replace(student, registers=registers)
