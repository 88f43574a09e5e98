"""Signatures of bundles: what the holder of a key signed, and nothing else, is opened."""

import shutil
import subprocess
from pathlib import Path

import pytest

from atlas_edge import open_bundle
from atlas_edge.cli import run_app
from atlas_edge.errors import ChecksumError, InputError, RuntimeMissing, UsageError
from atlas_edge.export.cli import app
from atlas_edge.package.signature import check_signature, sign_folder, signature_beside
from atlas_edge.system import hardware


def test_without_the_library_it_is_said_what_to_install(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "installed_module", lambda name: None)
    with pytest.raises(RuntimeMissing, match=r"atlas-edge\[signing\]"):
        open_bundle(bundle, public_key=tmp_path / "key.pub")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two pairs of keys, as the help says to make them."""
    pytest.importorskip("model_signing")
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not here to make keys")
    folder = tmp_path_factory.mktemp("keys")
    made = {}
    for name in ("ours", "theirs"):
        private, public = folder / f"{name}.pem", folder / f"{name}.pub"
        generate = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private]
        subprocess.run(generate, check=True, capture_output=True)
        subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
        made |= {name: private, f"{name}.pub": public}
    return made


@pytest.fixture
def signed(bundle: Path, keys: dict[str, Path], tmp_path: Path) -> Path:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    assert run_app(app, ["sign", str(folder), "--key", str(keys["ours"])]) == 0
    return folder


def test_what_was_signed_is_opened(signed: Path, keys: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    open_bundle(signed, public_key=keys["ours.pub"]).close()
    assert run_app(app, ["verify", str(signed), "--public-key", str(keys["ours.pub"])]) == 0
    assert "signed by the holder of" in " ".join(capsys.readouterr().err.split())
    assert run_app(app, ["sign", str(signed), "--key", str(keys["ours"])]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run_app(app, ["sign", str(signed), "--key", str(keys["ours"]), "--out", str(signed / "in.sig")]) == 2
    assert run_app(app, ["verify", str(signed), "--signature", str(signature_beside(signed))]) == 2
    assert {path.name for path in signed.parent.iterdir()} == {"bundle", "bundle.sig"}


@pytest.mark.parametrize("change", ["model.bin", "manifest.json", "added", "removed", "hidden"])
def test_what_was_changed_since_is_not(signed: Path, keys: dict[str, Path], change: str) -> None:
    if change == "removed":
        (signed / "report.md").unlink()
    elif change in ("added", "hidden"):
        name = {"added": "more.txt", "hidden": ".git/config"}[change]
        (signed / name).parent.mkdir(exist_ok=True)
        (signed / name).write_text("more")
    else:
        data = bytearray((signed / change).read_bytes())
        data[-2] ^= 1
        (signed / change).write_bytes(data)
    said = f": {change} was changed since" if change in ("model.bin", "manifest.json") else ": "
    with pytest.raises(ChecksumError, match=rf"is not what the holder of ours\.pub signed{said}"):
        open_bundle(signed, public_key=keys["ours.pub"])


def test_a_key_may_have_a_password(
    signed: Path, keys: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    locked = keys["ours"].with_name("locked.pem")
    lock = ["openssl", "ec", "-in", keys["ours"], "-aes256", "-passout", "pass:secret", "-out", locked]
    subprocess.run(lock, check=True, capture_output=True)
    words = ["sign", str(signed), "--key", str(locked), "--overwrite"]
    assert run_app(app, words) == 5 and "ATLAS_EXPORT_KEY_PASSWORD" in capsys.readouterr().err
    monkeypatch.setenv("ATLAS_EXPORT_KEY_PASSWORD", "secret")
    assert run_app(app, words) == 0
    check_signature(signed, keys["ours.pub"])


def test_another_key_or_none_is_told(
    signed: Path, keys: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ChecksumError):
        check_signature(signed, keys["theirs.pub"])
    with pytest.raises(UsageError, match="is not there"):
        check_signature(signed, keys["ours.pub"], tmp_path / "none.sig")
    (tmp_path / "text.pub").write_text("no key")
    with pytest.raises(InputError, match="is no public key of an elliptic curve"):
        check_signature(signed, tmp_path / "text.pub")
    with pytest.raises(InputError, match="is no private key of an elliptic curve"):
        sign_folder(signed, tmp_path / "new.sig", private_key=tmp_path / "text.pub")
    whole = signature_beside(signed).read_text()
    for text in ("", whole[: len(whole) // 2], "[]"):
        signature_beside(signed).write_text(text)
        with pytest.raises(InputError, match="is no signature, or only part of one"):
            check_signature(signed, keys["ours.pub"])
    signature_beside(signed).write_text("{}")
    with pytest.raises(ChecksumError):
        check_signature(signed, keys["ours.pub"])
    words = ["sign", str(signed), "--key", str(keys["ours"]), "--overwrite"]
    assert run_app(app, [*words, "--out", str(tmp_path)]) == 2 and "is a folder" in capsys.readouterr().err
    assert run_app(app, [*words, "--out", str(tmp_path / "new" / "folder.sig")]) == 0
    check_signature(signed, keys["ours.pub"], tmp_path / "new" / "folder.sig")
    capsys.readouterr()
    (signed / "model.bin").write_bytes(b"damaged")
    assert run_app(app, words) == 5 and "model.bin" in capsys.readouterr().err
