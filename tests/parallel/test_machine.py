"""Facts about the machine, as Linux shows them."""

from pathlib import Path

import pytest

from sublens.parallel import machine

XEON = "processor : 0\nmodel name\t: Xeon\nflags\t: fpu avx2 avx512f amx_bf16\n\nprocessor : 1\nmodel name : other\n"


def test_the_processor_and_its_instructions_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(XEON)
    assert (machine.processor(), machine.instructions()) == ("Xeon", ["AVX2", "AVX-512", "AMX BF16"])


def test_a_system_that_tells_nothing_has_a_processor_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CPU_INFO", Path("/nonexistent"))
    monkeypatch.setattr(machine, "MEMORY_INFO", Path("/nonexistent"))
    assert machine.processor()
    assert (machine.instructions(), machine.memory()) == ([], None)


@pytest.mark.parametrize(("limit", "total"), [("max", 2048), ("1024", 1024)])
def test_memory_ends_at_the_limit_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, total: int
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 2 kB\nMemFree: 0 kB\nMemAvailable: 1 kB\n")
    (tmp_path / "limit").write_text(f"{limit}\n")
    monkeypatch.setattr(machine, "MEMORY_INFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "MEMORY_LIMITS", (tmp_path / "limit", tmp_path / "none"))
    assert machine.memory() == (total, 1024)
