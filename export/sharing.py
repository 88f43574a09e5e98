"""A bundle on the Hugging Face Hub: what may be given on, and whether what arrived is what was sent."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas_edge.bundle import MANIFEST, verify_bundle
from atlas_edge.cli import require_module
from atlas_edge.errors import ChecksumError, InputError, UsageError
from atlas_edge.manifest import Manifest
from atlas_edge.models.published.licences import why_not_shared

PREFIX = "hf-hub:"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# The hub's own, in every repository.
_OF_THE_HUB = frozenset({".gitattributes"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What is, or would be, on the hub.

    Attributes:
        repository: `organisation/name`.
        manifest: Of the bundle.
        doubts: Why it may not be given on, as far as the bundle says; whoever pushes has said why it may.
        commit: Of the repository; None where nothing was sent.
    """

    repository: str
    manifest: Manifest
    doubts: tuple[str, ...]
    commit: str | None = None


def push_bundle(
    bundle: Path,
    to: str,
    *,
    rights: str | None = None,
    public: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Pushed:
    """Send a bundle to a model repository, which then holds its files and no others.

    Args:
        bundle: Bundle folder.
        to: `hf-hub:organisation/name`.
        rights: Why it may be given on, where the bundle does not say; goes into the commit's description.
        public: A repository that is made for it is open to everybody; private otherwise. One that is there stays as
            it is.
        overwrite: Replace a bundle that is there.
        dry_run: Look at everything that can be looked at without the network, send nothing.

    Raises:
        UsageError: No such form of a name; the bundle may not be given on; the repository is taken.
        InputError: The bundle is damaged, or the hub refuses.
        ChecksumError: A file arrived otherwise than it was sent.
        RuntimeMissing: huggingface_hub is not installed.
    """
    repository = to.removeprefix(PREFIX)
    if not to.startswith(PREFIX) or not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"{to!r} is no repository of the hub", hint="hf-hub:organisation/name")
    manifest = verify_bundle(bundle)
    doubts = doubts_about_sharing(manifest)
    if doubts and not rights:
        raise UsageError(
            f"{bundle} may not be given on: {'; '.join(doubts)}",
            hint="say with --rights why it may, or export it from weights and tiles whose licences allow it",
        )
    require_module("huggingface_hub", extra="torch")
    found = Pushed(repository=repository, manifest=manifest, doubts=doubts)
    if dry_run:
        return found
    import huggingface_hub

    try:
        commit = _send(huggingface_hub.HfApi(), bundle, found, rights=rights, public=public, overwrite=overwrite)
    except (UsageError, ChecksumError, MemoryError):
        raise
    except Exception as error:  # hub, network, login: whatever it raises is about that repository
        said = next(iter(str(error).splitlines()), repr(error))
        raise InputError(f"{to}: {said}", hint="log in with hf auth login, by a token that may write there") from error
    return Pushed(repository=repository, manifest=manifest, doubts=doubts, commit=commit)


def doubts_about_sharing(manifest: Manifest) -> tuple[str, ...]:
    """Why a bundle may not be given on, as far as it says itself.

    Weights are of its model; the scales of an INT8 or FP8 bundle are of the calibration tiles. Of the tiles that it was
    judged on it holds figures alone.
    """
    doubts = [(f"the model {manifest.model.name}", why_not_shared(manifest.model.licence))]
    tiles = manifest.calibration
    if manifest.quantization is not None and tiles is not None and not tiles.synthetic:
        doubts.append((f"its calibration set {tiles.name}", why_not_shared(tiles.licence)))
    if manifest.config.get("keep_paths"):
        doubts.append(("it", "holds paths and names of tiles (--keep-paths), which may name patients"))
    return tuple(f"{what} {why}" for what, why in doubts if why is not None)


def _send(api: Any, bundle: Path, found: Pushed, *, rights: str | None, public: bool, overwrite: bool) -> str:
    repository, manifest = found.repository, found.manifest
    api.create_repo(repository, private=not public, exist_ok=True)
    there = set(api.list_repo_files(repository)) - _OF_THE_HUB
    if there and MANIFEST not in there:
        raise UsageError(f"{PREFIX}{repository} holds something else than a bundle", hint="name another repository")
    if there and not overwrite:
        raise UsageError(f"{PREFIX}{repository} holds a bundle", hint="add --overwrite to replace it")
    done = api.upload_folder(
        repo_id=repository,
        folder_path=bundle,
        commit_message=f"{manifest.encoder.name}, {manifest.target.value} {manifest.precision.value}",
        commit_description=f"Rights: {rights}" if rights else None,
        delete_patterns="*",
    )
    commit = str(done.oid)
    hashes = {file.path: file.sha256 for file in manifest.files}
    arrived = {info.path: info for info in api.get_paths_info(repository, list(hashes), revision=commit)}
    # Large files are known to the hub by the same hash as to us, small ones by git's.
    large = {path: info.lfs.sha256 for path, info in arrived.items() if info.lfs is not None}
    wrong = sorted(set(hashes) - set(arrived) | {path for path, sha256 in large.items() if sha256 != hashes[path]})
    if wrong:
        raise ChecksumError(
            f"{PREFIX}{repository}: {', '.join(wrong)} did not arrive as sent", hint="push it again with --overwrite"
        )
    return commit
