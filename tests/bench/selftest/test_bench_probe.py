"""A probe beside a bundle: fitted, kept with its hash, and asked by selftest."""

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from atlas_edge.bench.accuracy.probe import LinearProbe, fit_probe
from atlas_edge.bench.cli import app
from atlas_edge.bench.selftest.probe import SUM_SUFFIX, probe_beside, read_probe
from atlas_edge.bench.selftest.rows import selftest_rows
from atlas_edge.bench.selftest.run import read_selftest, run_selftest
from atlas_edge.bundle import verify_bundle
from atlas_edge.cli import run_app
from atlas_edge.errors import ChecksumError, InputError

pytest.importorskip("sklearn")


@pytest.mark.parametrize("classes", [2, 4])
def test_the_weights_decide_as_the_probe_does(classes: int) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 6)).astype(np.float32)
    labels = np.array([f"class {number}" for number in rng.integers(0, classes, 120)])
    features[:, 0] += np.unique(labels, return_inverse=True)[1]
    probe = fit_probe("linear", features, labels)
    assert isinstance(probe, LinearProbe)
    logits = probe.weights().logits(features)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(odds / odds.sum(axis=1, keepdims=True), probe.probabilities(features), atol=1e-12)


def test_selftest_compares_decisions_where_there_is_a_probe(
    bundle: Path, tiny_model: Path, tiles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = probe_beside(bundle)
    files = [probe, probe.with_name(probe.name + SUM_SUFFIX)]
    words = ["probe", str(bundle), "--reference", str(tiny_model), "--fit", str(tiles), "--limit", "20"]
    try:
        assert run_selftest(bundle, speed=False).cases["int8"].decisions is None
        assert run_app(app, [*words, "--json"]) == 0
        # The names of classes stay at home, and the bundle is what its manifest says.
        assert json.loads(capsys.readouterr().out)["classes"] == ["class 1", "class 2"]
        verify_bundle(bundle)
        report = run_selftest(bundle, speed=False)
        decisions, stored = report.cases["int8"].decisions, read_probe(bundle)
        assert stored is not None and decisions is not None
        selftest = read_selftest(bundle)
        assert selftest.deployed is not None
        expected = int((stored.decide(selftest.deployed) != stored.decide(selftest.reference)).sum())
        assert (decisions.tiles, decisions.changed_when_made) == (64, expected)
        assert any(rows.title.startswith("Decisions of the probe") for rows in selftest_rows(report))
        assert run_app(app, words) == 2 and "--overwrite" in capsys.readouterr().err
        assert run_app(app, [*words, "--overwrite", "--keep-names", "-q"]) == 0
        named = read_probe(bundle)
        assert named is not None and named.classes == ("blue", "pink")
        _spoil(bundle, files)
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def _spoil(bundle: Path, files: list[Path]) -> None:
    probe, beside = files
    data, stated = probe.read_bytes(), beside.read_text()
    probe.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ChecksumError, match=r"is not the file of its \.sha256"):
        run_selftest(bundle, speed=False)
    probe.write_bytes(data)
    beside.unlink()
    with pytest.raises(ChecksumError):
        read_probe(bundle)
    beside.write_text(stated)
    # Forged together with its hash: it is no probe, or one of another bundle.
    for forged, error, message in (
        (b"no tensors", InputError, "cannot be read"),
        (data.replace(b'"manifest_sha256":"', b'"manifest_sha255":"'), ChecksumError, "another bundle"),
        (data.replace(b'"classes":"', b'"klasses":"'), InputError, "cannot be read"),
    ):
        probe.write_bytes(forged)
        beside.write_text(f"{sha256(forged).hexdigest()}  {probe.name}\n")
        with pytest.raises(error, match=message):
            read_probe(bundle)
