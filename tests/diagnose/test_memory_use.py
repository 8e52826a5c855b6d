"""How full memory is: the machine's, or the container's where that is fuller."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from inf_nerf.diagnose import memory_use
from inf_nerf.diagnose.memory_use import device_busy, device_share, host_share, resident_bytes

GIB = 1 << 30


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 GiB, of which 4 are used."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=16 * GIB, available=12 * GIB))


def test_without_a_container_it_is_the_machine(tmp_path: Path) -> None:
    assert host_share(tmp_path) == 0.25


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_that_is_fuller_counts_without_its_cached_files(tmp_path: Path, version: int) -> None:
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    folder = tmp_path if version == 2 else tmp_path / "memory"
    folder.mkdir(exist_ok=True)
    for name, value in zip(names, (4 * GIB, 3 * GIB)):
        (folder / name).write_text(f"{value}\n")
    key = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon {2 * GIB}\n{key} {GIB}\n")
    assert host_share(tmp_path) == 0.5
    (folder / names[0]).write_text("max\n" if version == 2 else f"{2**63 - 4096}\n")
    assert host_share(tmp_path) == 0.25


def test_resident_bytes_grow_with_what_is_held() -> None:
    resident = resident_bytes()
    before = resident()
    held = torch.ones(16_000_000)
    assert resident() - before > 50e6
    assert held.sum() > 0


def test_resident_bytes_are_known_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    here = resident_bytes()()
    monkeypatch.setattr(memory_use, "STATM", "/nowhere")
    assert resident_bytes()() == pytest.approx(here, rel=0.1)


def test_a_cpu_is_no_device() -> None:
    assert device_share(torch.device("cpu")) is None and device_busy(torch.device("cpu")) is None
