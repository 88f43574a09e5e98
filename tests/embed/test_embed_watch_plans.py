"""The watcher where the plan, the folder or the disk is not what it was: it waits, refuses or goes on."""

from pathlib import Path

import pytest

from atlas_edge.embed import EmbedConfig
from atlas_edge.errors import UsageError
from embed.test_embed_watch_faults import names, watch

pytest.importorskip("h5py")


def test_a_scale_that_is_given_no_more_is_another_plan(drop: Path) -> None:
    watch(drop, EmbedConfig(mpp=0.25))
    with pytest.raises(UsageError, match=r"given_mpp 0\.25, now none"):
        watch(drop)
    # The journal is lost: these slides say their scale, so that none was given to them.
    for file in (drop.parent / "out").glob("atlas-embed.sqlite*"):
        file.unlink()
    assert names(watch(drop), "begin") == []
