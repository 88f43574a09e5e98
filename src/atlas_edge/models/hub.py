"""Model folders from the Hugging Face hub: one commit, the cache where there is no network."""

from pathlib import Path

from atlas_edge.errors import InputError, RuntimeMissing
from atlas_edge.models.published.known import Known
from atlas_edge.models.timm_config import CONFIG, WEIGHTS, import_command

_PICKLED = "pytorch_model.bin"
_REFUSED = frozenset({401, 403})


def download(repository: str, revision: str | None, known: Known | None) -> Path:
    """The snapshot with configuration and weights of one commit, from the cache where it is there.

    Args:
        repository: `organisation/name`.
        revision: Branch, tag or commit; the main branch when None.
        known: Its entry in the table of known encoders.

    Raises:
        InputError: There is none, access was not given, or only a pickled checkpoint.
        RuntimeMissing: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise RuntimeMissing("huggingface_hub is not installed", hint="pip install 'atlas-edge[torch]'") from error
    folder: Path | None = None
    try:
        folder = Path(hf_hub_download(repository, CONFIG, revision=revision)).parent
        hf_hub_download(repository, WEIGHTS, revision=folder.name)
    except Exception as error:  # hub, network, cache: whatever it raises is about that repository
        raise _explained(repository, folder, error, known) from error
    return folder


def _explained(repository: str, folder: Path | None, error: Exception, known: Known | None) -> InputError:
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError

    said = str(error).splitlines()[0] if str(error) else repr(error)
    gated = isinstance(error, GatedRepoError) or (known is not None and known.gated)
    if getattr(getattr(error, "response", None), "status_code", None) in _REFUSED:
        what = "is gated, and this login has no access" if gated else f"is not open to this login ({said})"
        return InputError(
            f"hf-hub:{repository} {what}",
            hint=f"ask for access on its page, huggingface.co/{repository}, then log in here: hf auth login",
        )
    pickled = folder is not None and (folder / _PICKLED).is_file()
    if pickled or (isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)):
        found = folder / _PICKLED if folder is not None and pickled else Path(_PICKLED)
        fetched = "" if pickled else f"hf download {repository} {_PICKLED} {CONFIG} --local-dir . && "
        return InputError(
            f"hf-hub:{repository} holds no {WEIGHTS}" + (f": {said}" if folder is None else ""),
            hint=f"{fetched}{import_command(found, known.name if known else None)}, and give that folder",
        )
    access = "; it is gated: ask for access on its page, then hf auth login" if gated else ""
    return InputError(
        f"hf-hub:{repository}: {said}", hint=f"copy {CONFIG} and {WEIGHTS} into a folder and give that folder{access}"
    )
