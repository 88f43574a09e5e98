"""The table of known encoders: every fact has a source, and timm builds what it describes."""

from pathlib import Path

import pytest

from atlas_edge.errors import InputError, UsageError
from atlas_edge.models.published.known import Known, find_known, known_encoders, known_of_hub

ALL = list(known_encoders().values())
FACTS = {
    "network": ("architecture", "arguments"),
    "pooling": ("pooling",),
    "statistics": ("mean", "std"),
    "mpp": ("mpp",),
    "licence": ("licence",),
}


@pytest.mark.parametrize("known", ALL, ids=lambda known: known.name)
def test_a_fact_has_a_source_and_a_source_a_fact(known: Known) -> None:
    for source, facts in FACTS.items():
        assert (source in known.sources) == any(getattr(known, fact) for fact in facts), source
    assert known.sources.keys() <= FACTS.keys() | {"students"}
    assert (known.mean is None) == (known.std is None)
    assert known.students is None or known.licence is not None


def test_repositories_name_one_encoder_each() -> None:
    names = [name.lower() for known in ALL for name in (known.hub, *known.aliases) if name is not None]
    assert len(names) == len(set(names)) > 30


def test_an_encoder_is_found_by_name_and_by_repository() -> None:
    assert find_known("virchow2") is find_known("hf-hub:paige-ai/virchow2") is known_of_hub("paige-ai/Virchow2")
    assert known_of_hub("nobody/nothing") is None
    with pytest.raises(UsageError, match="no known encoder is called 'virchow3'") as refused:
        find_known("virchow3")
    assert "virchow2" in str(refused.value.hint)


@pytest.mark.parametrize("name", ["conch-v1.5", "ctranspath", "rudolfv-2-s"])
def test_what_cannot_be_loaded_says_why(name: str) -> None:
    with pytest.raises(InputError, match="cannot be loaded: its"):
        find_known(name).must_load()


@pytest.mark.parametrize(("licence", "students"), [("apache-2.0", "yes"), ("mit", "yes"), ("cc-by-nc-nd-4.0", "no")])
def test_a_licence_means_the_same_for_all(licence: str, students: str) -> None:
    found = [known.students for known in ALL if known.licence == licence]
    assert found and set(found) == {students}


# As the cards say, or lists that follow them; in millions.
PARAMETERS = {
    "uni": 303.4, "uni2-h": 681.4, "virchow": 631.2, "virchow2": 631.2, "h-optimus-0": 1135, "h-optimus-1": 1135,
    "h0-mini": 85.7, "prov-gigapath": 1135, "gigapath-flash": 21.681024, "hibou-b": 85.7, "hibou-l": 303.7,
    "phikon": 85.8, "phikon-v2": 303.4, "midnight-12k": 1136, "openmidnight": 1135, "kaiko-s16": 21.7,
    "lunit-s8": 21.7, "dinov2-s": 22.1, "dinov3-s": 21.6, "rudolfv-2": 1133.789, "rudolfv-2-s": 21.4,
    "distillpath-ks16": 21.7, "tinypath": 103.6,
}  # fmt: skip


@pytest.mark.parametrize("known", [known for known in ALL if known.architecture], ids=lambda known: known.name)
def test_timm_builds_the_network(known: Known) -> None:
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    from atlas_edge.models.timm_folder import with_layers

    assert known.architecture is not None
    with torch.device("meta"):
        arguments = with_layers(known.arguments, Path("known.toml"))
        network = timm.create_model(known.architecture, num_classes=0, **arguments)
    found = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    if known.name in PARAMETERS:
        assert found == pytest.approx(PARAMETERS[known.name], rel=5e-3)
