"""Bundles that embed the same slides: what is known of each before it is loaded, and what is left for it to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas_edge.embed.config import EmbedConfig
from atlas_edge.embed.jobs import (
    OUTPUT_SUFFIXES,
    FoundSlide,
    Jobs,
    SlideFailure,
    SlideSkipped,
    leave_out_done,
    name_outputs,
    one_or_many,
)
from atlas_edge.embed.output.files import check_form
from atlas_edge.embed.output.tokens import check_tokens
from atlas_edge.embed.resume.plan import plan_of
from atlas_edge.embed.workers import SlideJob, one_bundle, read_spec
from atlas_edge.errors import UsageError
from atlas_edge.options import Running
from atlas_edge.spec import EncoderSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenBundle:
    """A bundle or model that is to embed.

    Attributes:
        path: What `open_encoder` opens.
        running: On what it runs.
        spec: Its encoder.
        sha256: See `bundle_hash`.
        out: File or folder for what it embeds.
    """

    path: str
    running: Running
    spec: EncoderSpec
    sha256: str
    out: Path


def choose_bundles(names: Sequence[str], out: Path, running: Running) -> list[ChosenBundle]:
    """Look at bundles: of packages the variant that is best here.

    Args:
        names: Bundles, packages or models.
        out: Where embeddings of one go; of several each has a folder of its own name there.
        running: On what they run.

    Raises:
        UsageError: Two have one name, or `out` is a file's name for several.
    """
    places = [out] if len(names) == 1 else _places(names, out)
    chosen = [one_bundle(name, running) for name in names]
    return [
        ChosenBundle(path=path, running=where, spec=spec, sha256=sha256, out=place)
        for (path, where), place in zip(chosen, places, strict=True)
        for spec, sha256 in [read_spec(path)]
    ]


def jobs_of(
    bundles: Sequence[ChosenBundle], found: list[FoundSlide], named: Sequence[Path] | None, form: str, *, tokens: bool
) -> list[Jobs]:
    """Slides and outputs of each bundle.

    Args:
        bundles: Bundles.
        found: Slides.
        named: What was typed for them; None where `out` is a folder in any case.
        form: Of outputs.
        tokens: They are to hold patch tokens.

    Raises:
        UsageError: See `one_or_many`, `check_form` and `check_tokens`.
    """
    if len(bundles) == 1 and named is not None:
        jobs = [one_or_many(found, named, bundles[0].out, form)]
    else:
        check_form(bundles[0].out / f"x.{form}")
        jobs = [name_outputs(found, bundle.out, form) for bundle in bundles]
    for bundle, its_own in zip(bundles, jobs, strict=True):
        for _, target in its_own:
            check_form(target)
            if tokens:
                check_tokens(target, bundle.spec)
    return jobs


def left_to_do(
    bundles: Sequence[ChosenBundle], jobs: Sequence[Jobs], config: EmbedConfig, *, overwrite: bool, re_embed: bool
) -> tuple[list[SlideJob], list[SlideSkipped], list[SlideFailure]]:
    """What no bundle has done yet, slide by slide, so that all that want a tile get it at once.

    Raises:
        UsageError: See `leave_out_done`.
    """
    outs: dict[Path, dict[int, Path]] = {}
    skipped: list[SlideSkipped] = []
    failed: list[SlideFailure] = []
    for number, (bundle, its_own) in enumerate(zip(bundles, jobs, strict=True)):

        def plan(slide: Path, bundle: ChosenBundle = bundle) -> dict[str, object]:
            return plan_of(bundle.spec, config.of_slide(slide), bundle.sha256)

        to_do, done, wrong = leave_out_done(its_own, plan, overwrite=overwrite, re_embed=re_embed)
        skipped, failed = skipped + done, failed + wrong
        for slide, out in to_do:
            outs.setdefault(slide, {})[number] = out
    # In the order in which they were named, whichever bundle lacks which.
    return [(slide, outs[slide]) for slide, _ in jobs[0] if slide in outs], skipped, failed


def _places(names: Sequence[str], out: Path) -> list[Path]:
    if out.suffix in OUTPUT_SUFFIXES:
        raise UsageError(f"{out} is a file's name, expected a folder for {len(names)} bundles", hint="use --out FOLDER")
    folders = [Path(name).resolve().name for name in names]
    for number, folder in enumerate(folders):
        if folder.casefold() in (other.casefold() for other in folders[:number]):
            raise UsageError(
                f"two bundles are called {folder}, and their embeddings would lie in one folder",
                hint="rename one, or embed by one after the other, each with its own --out",
            )
    return [out / folder for folder in folders]
