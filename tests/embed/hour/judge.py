"""What became of the slides, and of the watcher's memory."""

import csv
import sqlite3
from collections import Counter, defaultdict
from pathlib import Path

import h5py
import numpy as np

from embed.conftest import make_scan
from embed.hour.watched import Watched

FLAT_MB_PER_HOUR = 10.0
_SETTLED_MIN = 10.0


def what_is_wrong(hour: Watched) -> list[str]:
    """What was lost, embedded twice, or has other embeddings than an undisturbed run; nothing is best."""
    hour.until(lambda: all(map(hour.is_embedded, hour.good)), 600)
    wrong: list[str] = []
    events = hour.events()
    done = Counter(line["slide"] for line in events if line["event"] == "done")
    done.update({str(path) for path in hour.good if hour.is_embedded(path) and not done[str(path)]})
    outs = {str(path): str(hour.out / f"{path.name.split('.')[0]}.h5") for path in hour.good}
    outs |= {line["slide"]: line["out"] for line in events if line["event"] == "done"}
    for path, source in hour.good.items():
        if not done[str(path)]:
            wrong.append(f"{path.name!r} was lost")
            continue
        if done[str(path)] > 1 + hour.again[path]:
            wrong.append(f"{path.name!r} was embedded {done[str(path)]} times")
        if _arrays(Path(outs[str(path)])) != _undisturbed(hour, source):
            wrong.append(f"{path.name!r} has other embeddings than an undisturbed run")
    wrong += [f"{name!r} was embedded, and should not be" for name in set(done) - set(map(str, hour.good))]
    wrong += [f"{path.name!r} was left behind" for path in _left_behind(hour)]
    return wrong + [f"{what}: {did}" for what, did in hour.rows if "NOT EMBEDDED" in did or "ENDED" in did]


def counts(hour: Watched) -> list[str]:
    """Slides before, and what there is after."""
    done = Counter(line["slide"] for line in hour.events() if line["event"] == "done")
    with sqlite3.connect(hour.out / "atlas-embed.sqlite") as journal:
        states = dict(journal.execute("SELECT state, COUNT(*) FROM slides GROUP BY state").fetchall())
    put = ", ".join(f"{count} {kind}" for kind, count in hour.put.items())
    return [
        f"put into the folder: {hour.number} slides ({put})",
        f"to be embedded in the end: {len(hour.good)}, of which {sum(hour.again.values())} were changed when done",
        f"embedded: {len(done)} slides in {sum(done.values())} runs; outputs: {len(list(hour.out.rglob('*.h5')))}; "
        f"in quarantine: {len(list((hour.out / 'quarantine').glob('*.json')))}",
        f"the journal's states: {', '.join(f'{state} {count}' for state, count in sorted(states.items()))}",
    ]


def memory(hour: Watched) -> tuple[list[str], list[str]]:
    """Memory of the watchers that lived longest, and what is wrong with it.

    The slope is that of a straight line through all samples later than ten minutes after its start.
    """
    lives: dict[str, list[dict[str, float]]] = defaultdict(list)
    with (hour.record / "memory.csv").open() as file:
        for row in csv.DictReader(file):
            lives[row["process"]].append({name: float(value) for name, value in row.items()})
    told, wrong = [], []
    for rows in sorted(lives.values(), key=len, reverse=True)[:3]:
        first, last = rows[0], rows[-1]
        settled = [row for row in rows if row["minutes"] - first["minutes"] >= _SETTLED_MIN]
        text = (
            f"one that lived {last['minutes'] - first['minutes']:.0f} min and saw "
            f"{last['slides'] - first['slides']:.0f} slides: {first['rss_mb']:.0f} MB at first, "
            f"{max(row['rss_mb'] for row in rows):.0f} at most, "
            f"{last['rss_mb']:.0f} at last; files {first['files']:.0f} to {last['files']:.0f}, threads "
            f"{first['threads']:.0f} to {last['threads']:.0f}; {last['cpu_s']:.0f} s of the processor"
        )
        if len(settled) >= 60:
            hours = np.array([row["minutes"] / 60 for row in settled])
            slope = float(np.polyfit(hours, [row["anonymous_mb"] for row in settled], 1)[0])
            text = f"{text}; {slope:+.1f} MB an hour"
            if slope > FLAT_MB_PER_HOUR:
                wrong.append(f"memory is not flat: {slope:+.1f} MB an hour")
        told.append(text)
    return told, wrong


def _undisturbed(hour: Watched, source: int | Path) -> dict[str, bytes]:
    from atlas_edge.embed import EmbedConfig, embed_slide
    from atlas_edge.embed.workers import open_encoder

    encoder, _ = open_encoder(str(hour.bundle), batch=16)
    output = hour.work / "again" / f"{source if isinstance(source, int) else source.name}.h5"
    if isinstance(source, int) or not output.exists():
        output.parent.mkdir(exist_ok=True)
        slide = make_scan(hour.work / "again.tif", source) if isinstance(source, int) else source
        embed_slide(slide, encoder, output, EmbedConfig(batch=16))
    found = _arrays(output)
    if isinstance(source, int):
        for file in output.parent.glob(f"{source}.*"):
            file.unlink()
    return found


def _arrays(path: Path) -> dict[str, bytes]:
    with h5py.File(path) as file:
        return {name: file[name][:].tobytes() for name in ("features", "coords", "tissue_share", "focus")}


def _left_behind(hour: Watched) -> list[Path]:
    # A slide without tissue has a mask, too.
    outs = {path.name.removesuffix(".h5") for path in hour.out.rglob("*.h5")} | {
        path.stem for path in hour.scans.glob("blank*")
    }
    return [
        path
        for path in hour.out.iterdir()
        if path.is_file()
        and not path.name.startswith("atlas-embed.")
        and not any(path.name == f"{stem}{end}" for stem in outs for end in (".h5", ".mask.png", ".overview.jpg"))
    ]
