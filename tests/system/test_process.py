"""Processes are told apart by when they started and where, not by their number."""

import dataclasses
import subprocess
import sys

import pytest

from atlas_edge.system.process import ProcessId


def test_knows_itself_and_reads_its_own_text() -> None:
    here = ProcessId.current()
    assert here.is_running() is True
    assert ProcessId.parse(str(here)) == here
    assert "/" not in str(here)
    assert len(here.machine) == 12


@pytest.mark.parametrize("text", ["", "12", "12-34", "x-1-host", "host/12/34"])
def test_other_text_is_no_process(text: str) -> None:
    assert ProcessId.parse(text) is None


def test_a_reused_number_is_another_process() -> None:
    here = ProcessId.current()
    # Process 1 of a container that was started again, and this very process's number an hour ago.
    assert dataclasses.replace(here, started=here.started - 3600).is_running() is False
    assert dataclasses.replace(here, pid=1, started=here.started + 7).is_running() is False


def test_a_process_that_ended_does_not_run() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        there = ProcessId.of(child.pid)
        assert there.is_running() is True
    assert there.is_running() is False


def test_nothing_is_said_of_another_machine() -> None:
    assert dataclasses.replace(ProcessId.current(), machine="elsewhere").is_running() is None
