"""Facts about the machine: read from what the system says, None where it says nothing."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from care.runs import environment
from care.runs.files import to_json

X86 = "model name : Some Processor\nflags : fpu avx512_bf16 amx_bf16 amx_tile\n\nflags : fpu\n"
ARM = "processor : 0\nFeatures : fp asimd bf16\n"


@pytest.mark.parametrize(
    ("text", "flags", "amx"),
    [
        (X86, {"fpu", "avx512_bf16", "amx_bf16", "amx_tile"}, True),
        ("flags : amx_tile avx2", {"amx_tile", "avx2"}, False),
        (ARM, {"fp", "asimd", "bf16"}, False),
        ("", set(), False),
    ],
)
def test_processors_are_told_by_their_first_core(tmp_path, text, flags, amx):
    (tmp_path / "cpuinfo").write_text(text)
    assert environment.cpu_flags(tmp_path) == flags
    facts = environment.machine_facts(tmp_path)
    assert facts["amx"] is amx
    assert (facts["cpu"] == "Some Processor") is (text == X86)


def test_peak_memory_is_of_this_process(tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("VmPeak:\t9 kB\nVmHWM:\t 1572864 kB\n")
    assert environment.peak_memory_gib(tmp_path) == 1.5


def test_nothing_fails_where_the_system_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: int(name))
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    facts = environment.machine_facts(tmp_path / "absent")
    assert facts["memory_gib"] is None and facts["cores"] == 1 and to_json(facts)
    here = environment.peak_memory_gib(tmp_path)
    assert here is None or here > 0.0
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert environment.peak_memory_gib(tmp_path) is None


def test_versions_leave_out_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-distribution"))
    assert list(environment.versions()) == ["python", "numpy"]
    assert environment.versions()["python"].startswith("3.")


def test_accelerators_are_asked_of_a_loaded_torch_alone(monkeypatch):
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 2, get_device_name=lambda i: f"card {i}"
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert environment.accelerators() == ["card 0", "card 1"]
    cuda.is_available = lambda: False
    assert environment.accelerators() == []
    monkeypatch.delitem(sys.modules, "torch")
    assert environment.accelerators() == []


def test_a_start_is_told_without_a_heavy_import():
    code = (
        "import sys; from care.runs.environment import started; "
        "assert list(started('m', 3)) == ['command', 'model', 'seed', 'versions', 'machine'];"
        "sys.exit(bool({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
