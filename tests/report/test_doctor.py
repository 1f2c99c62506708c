"""The report on an installation and its machine."""

import getpass
import platform
import sys
from pathlib import Path

import pytest

from sublens.parallel import machine
from sublens.report import doctor


def report(monkeypatch: pytest.MonkeyPatch, **engines: str) -> dict[str, list[str]]:
    """The report by title, with these engines in place of those that take seconds to load."""
    monkeypatch.setattr(doctor, "ENGINES", engines)
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "absent" else "1.0")
    rows: dict[str, list[str]] = {}
    for line in doctor.lines():
        rows.setdefault(line[:12].strip(), []).append(line[13:])
    return rows


def test_versions_machine_and_folders_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = report(monkeypatch)
    assert {*doctor.PACKAGES, "sublens", "processor", "cores", "memory", "gpu", "temporary", "cache"} <= rows.keys()
    assert rows["python"][0].startswith(platform.python_version())
    assert any(line.startswith("lensnet ") and line.endswith("lensnet") for line in rows["bundle"])


def test_a_broken_engine_is_a_line_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = {"whole": "print('{}')", "broken": "raise OSError('no libcudart')", "absent": "", "dead": "sys.exit(9)"}
    assert report(monkeypatch, **engines)["engine"] == [
        "whole works",
        "broken cannot be loaded: OSError: no libcudart",
        "absent not installed",
        "dead cannot be loaded: exit code 9",
    ]


def test_an_engine_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOAD_SECONDS", 0.5)
    assert report(monkeypatch, slow="import time; time.sleep(60)")["engine"] == ["slow is not loaded within 0.5 s"]


def test_gpus_are_listed_as_torch_finds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = "print(json.dumps({'threads': 2, 'cuda': '13.0', 'gpus': [('H100', 80 * 2**30)]}))"
    rows = report(monkeypatch, torch=facts)
    assert (rows["engine"], rows["gpu"]) == (["torch works (threads: 2; CUDA: 13.0)"], ["H100, 80.0 GiB"])


def test_no_home_and_no_user_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/vera"))
    monkeypatch.setattr(getpass, "getuser", lambda: "vera")
    text = doctor.private("/home/vera/.cache /scratch/vera/tmp TMPDIR=/tmp/vera /tmp/job-vera-1 /opt/veranda")
    assert text == "~/.cache /scratch/USER/tmp TMPDIR=/tmp/USER /tmp/job-USER-1 /opt/veranda"


def test_a_user_without_a_name_gets_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise OSError

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert doctor.private("/tmp") == "/tmp"


def test_a_checkout_names_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "commit", lambda: "0123456789ab+")
    assert report(monkeypatch)["sublens"] == ["1.0, commit 0123456789ab+"]


@pytest.mark.slow
def test_the_report_is_written_without_loading_an_engine_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    assert sum(line.startswith("engine") for line in doctor.lines()) == 3
