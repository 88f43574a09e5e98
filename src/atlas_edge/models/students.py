"""The student registry: names that build a timm network without any file, and students that ship in the package."""

from dataclasses import dataclass
from pathlib import Path

from atlas_edge.errors import UsageError

# H&E at 20x; what Atlas 2-S was trained at is not published, so this is our choice.
STUDENT_MPP = 0.5
STUDENT_TILE_PX = 224
PATCHES = (8, 14, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Student:
    """A registry entry.

    Attributes:
        name: What the user types.
        architecture: timm architecture.
        patch: Default patch side, pixels.
        registers: Default number of register tokens.
        summary: One line for `--help` and errors.
    """

    name: str
    architecture: str
    patch: int = 14
    registers: int = 4
    summary: str = ""


STUDENTS: dict[str, Student] = {
    student.name: student
    for student in (
        Student(name="atlas2-s", architecture="vit_small_patch14_reg4_dinov2", summary="ViT-S, 22 M parameters"),
        Student(name="atlas2-b", architecture="vit_base_patch14_reg4_dinov2", summary="ViT-B, 86 M parameters"),
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
    patch = student.patch if patch is None else patch
    registers = student.registers if registers is None else registers
    if patch not in PATCHES:
        raise UsageError(f"patch side {patch} px is not offered", hint="choose --patch 8, 14 or 16")
    if registers < 0:
        raise UsageError(f"{registers} register tokens", hint="give --registers 0 or more")
    return Student(
        name=student.name,
        architecture=student.architecture,
        patch=patch,
        registers=registers,
        summary=student.summary,
    )
