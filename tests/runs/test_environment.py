"""Facts about the machine: read from what the system says, None where it says nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from care.runs import environment as machine

X86 = """processor\t: 0
model name\t: Some Processor 9000 @ 2.0GHz
flags\t\t: fpu sse2 avx512_bf16 amx_bf16 amx_tile

processor\t: 1
model name\t: Another Processor
flags\t\t: fpu
"""
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd bf16\nCPU part\t: 0xd40\n"


@pytest.fixture
def system(monkeypatch):
    """Stands in for /proc: a dict of path -> text; what isn't in it can't be read."""
    files: dict[str, str] = {}
    monkeypatch.setattr(machine, "_lines", lambda path: files.get(str(path), "").splitlines())
    return files


def test_x86_flags_and_name_are_those_of_the_first_core(system) -> None:
    system["/proc/cpuinfo"] = X86
    assert machine.cpu_flags() == {"fpu", "sse2", "avx512_bf16", "amx_bf16", "amx_tile"}
    assert machine.cpu_name() == "Some Processor 9000 @ 2.0GHz"
    assert machine.bf16_is_native()
    facts = machine.machine_facts()
    assert facts["amx"] is facts["avx512_bf16"] is True


def test_amx_needs_the_tiles_and_the_products(system) -> None:
    system["/proc/cpuinfo"] = "flags : amx_tile avx2"
    assert machine.machine_facts()["amx"] is False
    assert not machine.bf16_is_native()


def test_arm_reports_features(system) -> None:
    system["/proc/cpuinfo"] = ARM
    assert machine.cpu_flags() == {"fp", "asimd", "bf16"}
    assert machine.bf16_is_native()


def test_nothing_fails_where_there_is_no_proc(system, monkeypatch) -> None:
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    assert machine.cpu_flags() == frozenset()
    assert machine.cpu_name() is None
    assert not machine.bf16_is_native()
    json.dumps(machine.machine_facts(), allow_nan=False)


def test_an_unreadable_file_has_no_lines(tmp_path: Path) -> None:
    assert machine._lines(tmp_path / "absent") == []
    (tmp_path / "odd").write_bytes(b"a\xff\nb")
    assert len(machine._lines(tmp_path / "odd")) == 2


def test_memory_is_pages_times_their_size(monkeypatch) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 3 * 2**18 + 2**17}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    assert machine.memory_gib() == 3.5

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", unknown)
    assert machine.memory_gib() is None


def test_peak_memory_is_of_this_process(system) -> None:
    system["/proc/self/status"] = "VmPeak:\t9 kB\nVmHWM:\t 1572864 kB\n"
    assert machine.peak_memory_gib() == 1.5


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_without_proc_comes_from_the_system(
    system, monkeypatch, platform, unit
) -> None:
    resource = pytest.importorskip("resource")
    usage = SimpleNamespace(ru_maxrss=2 * 2**30 // unit)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(sys, "platform", platform)
    assert machine.peak_memory_gib() == 2.0


def test_peak_memory_is_unknown_on_windows(system, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert machine.peak_memory_gib() is None


def test_cores_are_those_that_may_be_used(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert machine.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores() == 1


def test_versions_leave_out_what_is_not_installed(monkeypatch) -> None:
    monkeypatch.setattr(machine, "PACKAGES", ("numpy", "no-such-distribution"))
    found = machine.versions()
    assert list(found) == ["python", "numpy"]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


def test_accelerators_are_asked_of_a_loaded_torch_alone(monkeypatch) -> None:
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 2, get_device_name=lambda i: f"card {i}"
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert machine.accelerators() == ["card 0", "card 1"]
    cuda.is_available = lambda: False
    assert machine.accelerators() == []
    monkeypatch.delitem(sys.modules, "torch")
    assert machine.accelerators() == []


def test_facts_cost_no_heavy_import() -> None:
    code = (
        "import sys; from care.runs.environment import machine_facts, versions; "
        "machine_facts(); versions();"
        "sys.exit(bool({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
