"""A folder of one DICOM slide is that slide."""

from pathlib import Path

import pytest

from atlas_edge.errors import InputError
from atlas_edge.slides.open import check_file
from atlas_edge.slides.readers.dicom import series_of, slide_in


def write_header(path: Path, series: str) -> Path:
    tag = b"\x20\x00\x0e\x00UI" + len(series).to_bytes(2, "little") + series.encode()
    path.write_bytes(bytes(128) + b"DICM" + bytes(40) + tag + b"\x20\x00\x10\x00")
    return path


def test_any_file_of_the_only_series_stands_for_the_folder(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("free")
    first = write_header(tmp_path / "1.2.840.1", "1.2.3")  # suffixes are not asked for
    assert series_of(write_header(tmp_path / "b.dcm", "1.2.3")) == "1.2.3"
    assert slide_in(tmp_path) == first
    check_file(tmp_path)


def test_a_folder_of_none_or_several_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        check_file(tmp_path)
    for number in range(2):
        write_header(tmp_path / f"{number}.dcm", f"1.2.{number}")
    with pytest.raises(InputError, match="2 DICOM slides"):
        check_file(tmp_path)
