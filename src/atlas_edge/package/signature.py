"""Signatures of bundles: OpenSSF model signing with a key of one's own, without a network.

Hashes in a manifest find what was damaged; whoever changes a file on purpose can change them, too. A signature can be
made only by whoever holds the private key. It lies beside the folder, which holds what its manifest lists and no more.
"""

import importlib
import json
import re
from pathlib import Path
from typing import Any

from atlas_edge.cli import require_module
from atlas_edge.errors import ChecksumError, InputError, RuntimeMissing, UsageError

SUFFIX = ".sig"
# How it names a file whose hash differs (1.1.1, in the text of a list); what else it says is shown as it is.
_MISMATCH = re.compile(r"Hash mismatch for \\?'([^'\\]+)")


def signature_beside(folder: Path) -> Path:
    """Where the signature of a bundle or package lies where nothing else is said: `BUNDLE.sig`."""
    folder = folder.resolve()
    return folder.with_name(folder.name + SUFFIX)


def sign_folder(folder: Path, signature: Path, *, private_key: Path, password: str | None = None) -> None:
    """Sign every file of a folder.

    Args:
        folder: Bundle or package.
        signature: File to write: a Sigstore bundle (JSON) with an in-toto statement of all files' hashes.
        private_key: In PEM: an elliptic curve's, P-256, P-384 or P-521.
        password: Of the key.

    Raises:
        RuntimeMissing: `model-signing` is not installed.
        InputError: The key cannot be used.
    """
    library = _library()
    _check_file(private_key, "the private key")
    try:
        # It hands the password on to `cryptography` as it is, which takes bytes (1.1.1).
        secret = None if password is None else password.encode()
        config = library.signing.Config().use_elliptic_key_signer(private_key=private_key, password=secret)
    except Exception as error:  # of its own and of `cryptography`, without a common base
        raise InputError(
            f"{private_key} is no private key of an elliptic curve: {_first_line(error)}",
            hint="set ATLAS_EXPORT_KEY_PASSWORD to its password, or make one: "
            "openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
        ) from error
    partial = signature.with_name(f".{signature.name}.partial")
    try:
        config.set_hashing_config(_every_file(library)).sign(folder, partial)
        partial.replace(signature)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{folder} cannot be signed: {_first_line(error)}", hint="verify the bundle first") from error
    finally:
        partial.unlink(missing_ok=True)


def check_signature(folder: Path, public_key: Path, signature: Path | None = None) -> None:
    """Check that a folder holds the files that the holder of a key signed, every one of them and no other.

    Args:
        folder: Bundle or package.
        public_key: In PEM.
        signature: Beside the folder (`BUNDLE.sig`) when None.

    Raises:
        RuntimeMissing: `model-signing` is not installed.
        UsageError: There is no such key or signature.
        InputError: One of them cannot be read.
        ChecksumError: Another key signed, or a file was changed, added or removed since.
    """
    verifier = read_public_key(public_key)
    signature = signature_beside(folder) if signature is None else signature
    _check_signature_file(signature)
    try:
        verifier.set_hashing_config(_every_file(_library())).verify(folder, signature)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        changed = ", ".join(_MISMATCH.findall(str(error)))
        raise ChecksumError(
            f"{folder} is not what the holder of {public_key.name} signed: "
            f"{f'{changed} was changed since' if changed else _first_line(error)}",
            hint="do not use it: ask whoever made the bundle for it, its signature and the public key once more",
        ) from error


def read_public_key(path: Path) -> Any:
    """What checks signatures by a public key in PEM.

    Raises:
        RuntimeMissing: `model-signing` is not installed.
        UsageError: There is no such file.
        InputError: It is no key of that kind.
    """
    library = _library()
    _check_file(path, "the public key")
    try:
        return library.verifying.Config().use_elliptic_key_verifier(public_key=path)
    except Exception as error:
        raise InputError(
            f"{path} is no public key of an elliptic curve: {_first_line(error)}",
            hint="openssl ec -in key.pem -pubout -out key.pub",
        ) from error


def _check_signature_file(path: Path) -> None:
    _check_file(path, "the signature")
    try:
        is_object = isinstance(json.loads(path.read_bytes()), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise InputError(f"{path} is no signature, or only part of one", hint="copy it again from where it was made")


def _library() -> Any:
    require_module("model_signing", extra="signing")
    try:
        return importlib.import_module("model_signing")
    except ImportError as error:  # 1.1 does not say all that it needs (pyopenssl)
        raise RuntimeMissing(
            f"model-signing is installed but cannot be loaded: {error}", hint="pip install 'atlas-edge[signing]'"
        ) from error


def _every_file(library: Any) -> Any:
    return library.hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)


def _check_file(path: Path, what: str) -> None:
    if not path.is_file():
        raise UsageError(f"{path}: {what} is not there", hint="name the file; see --help")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
