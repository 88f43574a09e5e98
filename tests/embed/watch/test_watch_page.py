"""What a watcher shows: pages that nothing hostile gets into, figures that can be reckoned by hand, health."""

import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atlas_edge.embed import EmbedConfig
from atlas_edge.embed.slide_files import SlideIdentity
from atlas_edge.embed.watch import watcher as module
from atlas_edge.embed.watch.journal import WatchJournal
from atlas_edge.embed.watch.pace import Pace
from atlas_edge.embed.watch.page.health import health, metrics
from atlas_edge.embed.watch.page.index import render
from atlas_edge.embed.watch.page.server import status_page
from atlas_edge.embed.watch.page.slide import render_slide
from atlas_edge.embed.watch.schema import State
from atlas_edge.embed.watch.status import Live, Status
from atlas_edge.embed.watch.view import SlideView
from atlas_edge.embed.watch.watcher import Watcher, WatchOptions
from embed.test_embed import MeanEncoder
from embed.test_embed_watch_faults import QUICK

IMG, SCRIPT = "<img src=x onerror=alert(1)>", "<script>alert(2)</script>"
ROW: dict[str, Any] = {
    "number": 7, "path": f"/scans/{IMG}.svs", "out": "/out/7.h5", "folder": "/scans", "state": "running", "attempts": 1,
    "tiles_done": 5, "tiles": 10, "seen_at": 0.0, "started_at": 0.0, "finished_at": None, "error": SCRIPT,
}  # fmt: skip
# github.com/prometheus/docs: content/docs/instrumenting/exposition_formats.md
SAMPLE = re.compile(r'[a-z_]+(\{[a-z_]+="([^"\\\n]|\\[\\"n])*"(,[a-z_]+="([^"\\\n]|\\[\\"n])*")*\})? [0-9.e+-]+')


class Hostile:
    """A watcher whose slides, errors and attributes are markup."""

    def __init__(self, picture: Path | None = None) -> None:
        self.picture, self.calls = picture, 0

    def status(self) -> Status:
        self.calls += 1
        return Status(
            counts={state.value: 1 for state in State},
            slides_per_hour=7,
            rows=[ROW],
            errors=[ROW],
            problem="<b>the disk is full</b>",
            live=Live(about={"folder": f"/scans/{IMG}"}, free_bytes=412 * 10**9),
        )

    def slide(self, number: int) -> SlideView | None:
        event = {"time": "2026-11-29T10:00:00.000+00:00", "event": SCRIPT, "slide": ROW["path"], "error": IMG}
        found = SlideView(row=ROW, attributes={IMG: SCRIPT}, events=[event], overview=self.picture)
        return found if number == 7 else None


def get(address: str, **headers: str) -> tuple[int, str, Any]:
    """Status, body and headers, whatever the status is."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            return answer.status, answer.read().decode("latin-1"), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def test_pages_by_http(tmp_path: Path) -> None:
    picture = tmp_path / "a.overview.jpg"
    picture.write_bytes(b"\xff\xd8picture")
    watched = Hostile(picture)
    with status_page(watched, 0) as address, status_page(watched, int(address.split(":")[2][:-1])) as other:
        assert address.startswith("http://127.0.0.1:")
        assert other != address
        for path, shown in (
            ("", "5 of 10"),
            ("slide/7", "running, attempt 1"),
            ("slide/7/fragment", "2026-11-29 10:00:00 UTC"),
        ):
            code, page, headers = get(address + path)
            assert code == 200 and shown in page
            assert "&lt;script&gt;alert(2)" in page and "&lt;img src=x" in page
            assert "<img src=x" not in page and SCRIPT not in page
            policy = headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "*" not in policy
        assert "&lt;b&gt;the disk is full" in get(address)[1]
        code, body, headers = get(f"{address}slide/7/overview.jpg")
        assert (code, body, headers["Content-Type"]) == (200, "\xff\xd8picture", "image/jpeg")
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert json.loads(get(f"{address}status.json")[1])["slides_per_hour"] == 7
        refused = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "[::2]", "")
        for host in refused:
            for path in ("", "healthz", "metrics", "slide/7/overview.jpg"):
                assert get(address + path, Host=host)[0] == 403
        paths = ("etc/passwd", "slide/8", "slide/7/", "slide/7/../../etc/passwd", "slide//etc/passwd", "slide/-7")
        for path in (*paths, "slide/%37", "slide/%D9%A7", "slide/" + "9" * 40):
            assert get(address + path, Host="localhost")[0] == 404, path
        picture.unlink()
        watched.picture = None
        assert get(f"{address}slide/7/overview.jpg")[0] == 404
        # Through a tunnel from afar, which ends at a port of its own.
        for host in ("localhost:9000", "LocalHost", "[::1]:8777", "127.0.0.1"):
            assert get(address, Host=host)[0] == 200
    assert render(watched.status(), 60.0).count("1 min ago") == 1


def status_of(tmp_path: Path, now: float, steps: Callable[[WatchJournal], None]) -> Status:
    journal = WatchJournal(tmp_path / "j.sqlite")
    steps(journal)
    found = journal.status(now)
    journal.close()
    return found


def test_figures_that_can_be_reckoned_by_hand(tmp_path: Path) -> None:
    """Six slides came, one of them too long ago; two were embedded, one failed, one is half done, two lie unopened."""

    def steps(journal: WatchJournal) -> None:
        for number, seen in enumerate((0.0, 9000.0, 9001.0, 9002.0, 9003.0, 9004.0)):
            path, out = tmp_path / f"{number}.svs", tmp_path / f"{number}.h5"
            # 10 bytes a tile, as it turns out; the last one is twice as large.
            size = 20_000 if number == 5 else 10_000
            for ready in (False, True):
                journal.observe(path, [out], identity=SlideIdentity(size, number), now=seen, ready=ready)
        for begin, end in ((9100.0, 9200.0), (9200.0, 9500.0)):
            job = journal.claim(begin)
            assert job is not None
            journal.finish(job, tiles=1000, now=end)
        job = journal.claim(9500.0)
        assert job is not None
        journal.fail(job, "broken", now=9501.0, most_attempts=1, retry_s=1.0)
        job = journal.claim(9900.0)
        assert job is not None
        journal.progress(job, 500, 1000)

    found = status_of(tmp_path, 10000.0, steps)
    assert (found.arrived, found.finished, found.slides_per_hour) == (5, 3, 2)
    assert (found.slides_left, found.workers) == (3, 1)
    # 2,500 tiles in 500 s; 500 of the one in work, 1,000 and 2,000 of those that nobody has opened.
    assert found.queue_end_s == pytest.approx(3500 / 5)
    # 1,000 embedded, 1,000 in work, 3,000; what failed is nobody's work.
    assert found.work_arrived_s == pytest.approx(5000 / 5)
    assert found.keeps_up
    page = render(found, 10000.0)
    kept = "5 slides came in the last hour, 3 were finished; what came is work for 17 min."
    assert f"Keeps up with the scanner: {kept}" in page
    assert "<dd id='end'>in 12 min</dd>" in page
    assert "<progress max='1000' value='500'></progress> 500 of 1,000" in page
    late = replace(found, work_arrived_s=3601.0)
    assert not late.keeps_up and "class='error'>Does not keep up with the scanner" in render(late, 10000.0)
    assert replace(late, workers=2).keeps_up


def test_an_empty_journal_has_figures_too(tmp_path: Path) -> None:
    found = status_of(tmp_path, 1.0, lambda _: None)
    assert (found.arrived, found.finished, found.slides_left, found.queue_end_s) == (0, 0, 0.0, 0.0)
    assert found.keeps_up is None and "<dd id='end'>now</dd>" in render(found, 1.0)
    assert health(found)["healthy"]


def test_metrics_are_of_prometheus_form_and_name_no_slide() -> None:
    found = Hostile().status()
    about = {"runs on": 'OpenVINO "x"\\\n', "tiles": "224 px at 0.5 µm per pixel", "folder": "/scans"}
    live = Live(about=about, tiles=1234, tiles_per_s=12.5, look_s=0.25, free_bytes=10**12, waits_for={"disk": 3.0})
    text = metrics(replace(found, live=live))
    told: dict[str, str] = {}
    for line in text.splitlines():
        kind = re.fullmatch(r"# (HELP|TYPE) ([a-z_]+) (.+)", line)
        if kind is None:
            assert SAMPLE.fullmatch(line), line
            assert told["TYPE"] == told["HELP"] == re.match("[a-z_]+", line)[0]  # type: ignore[index]
        else:
            told[kind[1]] = kind[2]
    for line in (
        'atlas_embed_slides{state="quarantined"} 1.0', "atlas_embed_tiles_total 1234.0", "atlas_embed_healthy 0.0",
        "atlas_embed_tiles_per_second 12.5", "atlas_embed_scan_seconds 0.25",
        "atlas_embed_disk_free_bytes 1000000000000.0",
        'atlas_embed_waits_seconds{kind="disk"} 3.0', r'runs_on="OpenVINO \"x\"\\\n"',
    ):  # fmt: skip
        assert line in text
    assert "svs" not in text and "/scans" not in text and "/out" not in text
    assert "atlas_embed_slides" not in metrics(replace(found, counts={}))


def test_health_says_what_is_wrong_and_names_no_slide() -> None:
    well = replace(Hostile().status(), problem="")
    said = health(well)
    assert said["healthy"] and said["problem"] == ""
    assert said["last_error"] == {"slide": 7, "state": "running", "attempts": 1, "age_s": None}
    assert ".svs" not in json.dumps(said)
    for wrong, problem in (
        (replace(well, live=Live(waits_for={"disk": 1.0, "folder": 2.0})), "waits for: disk; waits for: folder"),
        (replace(well, live=Live(look_age_s=80.0, look_due_s=75.0)), "the folder has not been looked at for long"),
        (replace(well, live=Live(sign_age_s=1000.0)), "nothing has been embedded or looked for for long"),
        (replace(well, counts={}), "the journal cannot be read"),
    ):
        assert health(wrong)["problem"] == problem and not health(wrong)["healthy"]


def test_pace_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("atlas_edge.embed.watch.pace.time.monotonic", lambda: clock[0])
    pace = Pace()
    clock[0] = 110.0
    pace.embedded(64)
    assert pace.tiles_per_s == 6.4
    clock[0] = 160.0
    pace.embedded(56)
    assert pace.tiles_per_s == 2.0
    clock[0] = 200.0
    assert pace.sign_age_s == 40.0 and pace.tiles_per_s == pytest.approx(56 / 60)
    clock[0] = 300.0
    assert pace.tiles_per_s == 0.0 and pace.tiles == 120


def test_a_watcher_shows_what_it_did(drop: Path) -> None:
    """By HTTP while it works, and each slide's page after it."""
    out = drop.parent / "out"
    (drop / "zero.svs").touch()
    options = WatchOptions(**{**QUICK, "once": True})
    watcher = Watcher([drop], out, MeanEncoder(), EmbedConfig(), options, bundle="some-bundle")
    with status_page(watcher.view, 0) as address:
        watcher.run()
        page = get(address)[1]
        for shown in ("some-bundle", str(drop.resolve()), "numpy", "32 px at 0.5 µm".encode().decode("latin-1")):
            assert shown in page
        numbers = dict(re.findall(r"<a href='/slide/(\d+)'>([\w.]+)</a>", page))
        assert sorted(numbers.values()) == ["a.tif", "c.tif", "zero.svs"]
        for number, name in numbers.items():
            code, page, _ = get(f"{address}slide/{number}")
            picture = get(f"{address}slide/{number}/overview.jpg")
            if name == "zero.svs":
                assert "quarantined, attempt 2" in page and "0 bytes" in page and picture[0] == 404
                continue
            assert code == 200 and "<td>slide_mpp</td><td>0.5</td>" in page
            history = re.findall(
                r"<td>([a-z]+)(?::[^<]*)?</td></tr>", page.partition("History")[2].partition("Attributes")[0]
            )
            assert history == ["found", "queued", "begin", "done"]
            assert picture[1].encode("latin-1") == (out / f"{name[0]}.overview.jpg").read_bytes()
        assert get(f"{address}healthz")[0] == 200
        assert 'atlas_embed_slides{state="done"} 2.0' in get(f"{address}metrics")[1]
        assert f"atlas_embed_tiles_total {float(sum_of_tiles(out))}" in get(f"{address}metrics")[1]


def sum_of_tiles(out: Path) -> int:
    import h5py

    total = 0
    for path in out.glob("*.h5"):
        with h5py.File(path) as file:
            total += len(file["features"])
    return total


def test_a_watcher_that_waits_is_not_healthy(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas_edge.embed.output.files import DiskFull

    codes: list[int] = []
    genuine = module.embed_slide

    def embed(*arguments: Any, **options: Any) -> Any:
        if not codes:
            codes.append(0)
            raise DiskFull("the disk is full")
        codes.append(get(f"{address}healthz")[0])
        return genuine(*arguments, **options)

    monkeypatch.setattr(module, "embed_slide", embed)
    watcher = Watcher(
        [drop], drop.parent / "out", MeanEncoder(), EmbedConfig(), WatchOptions(**{**QUICK, "once": True})
    )
    with status_page(watcher.view, 0) as address:
        watcher.run()
        codes.append(get(f"{address}healthz")[0])
    assert codes == [0, 503, 200, 200]


@pytest.mark.skipif(not Path("/usr/bin/chromium").exists(), reason="Chromium is not installed here")
def test_pages_in_a_browser(tmp_path: Path) -> None:
    """The first page as Chromium renders it, after its script has fetched the status once more."""
    watched = Hostile()
    with status_page(watched, 0) as address:
        done = subprocess.run(
            [
                "/usr/bin/chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,800",
                f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", address,
            ],
            capture_output=True, text=True, timeout=200, check=True,
        )  # fmt: skip
    assert watched.calls >= 2, "its script did not run"
    assert "&lt;img src=x onerror=alert(1)&gt;.svs" in done.stdout
    assert 'id="hourly">7</dd>' in done.stdout
    assert '<li class="error">' in done.stdout


def test_a_slide_page_in_words() -> None:
    view = SlideView(
        row={**ROW, "state": "done", "error": None, "finished_at": 0.0}, attributes={}, events=[], overview=None
    )
    page = render_slide(view, time.time())
    assert "<p id='tiles'>10 tiles</p>" in page and "no embeddings yet" in page and "<p>none</p>" in page
