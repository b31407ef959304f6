"""What a run's manifest records of its start: the command, the machine, the versions.

Reads the operating system and package metadata only: it imports no heavy package, changes no
setting and never fails. A fact that can't be read is None or left out. It measures memory, not
speed.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "care-vlm",
    "torch",
    "transformers",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
)
"""Distributions whose versions can change a result."""

GIB = 2**30

PROC = Path("/proc")
"""Where Linux says what it knows of processor and process."""


def started(model: str, seed: int) -> dict[str, object]:
    """What a manifest says of a job when it starts."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "model": model,
        "seed": seed,
        "versions": versions(),
        "machine": machine_facts(),
    }


def machine_facts(proc: Path = PROC) -> dict[str, object]:
    """What the manifest says of this machine; every value can be written as JSON."""
    flags = cpu_flags(proc)
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_name(proc),
        "cores": cores(),
        "memory_gib": memory_gib(),
        "amx": "amx_tile" in flags and "amx_bf16" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "accelerators": accelerators(),
    }


def versions() -> dict[str, str]:
    """Version of Python and of every package in `PACKAGES` that is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_flags(proc: Path = PROC) -> frozenset[str]:
    """Instruction sets that Linux reports for the first core; empty on other systems."""
    for line in _lines(proc / "cpuinfo"):
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def cpu_name(proc: Path = PROC) -> str | None:
    """The processor's model name, or the best that the platform knows."""
    for line in _lines(proc / "cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or None


def cores() -> int:
    """Cores that this process may use, which a container makes fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gib() -> float | None:
    """Physical memory in GiB."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1)
    except (AttributeError, ValueError, OSError):
        return None


def peak_memory_gib(proc: Path = PROC) -> float | None:
    """Largest resident memory of this process so far, in GiB (accelerator memory not included)."""
    # VmHWM starts anew with the program; getrusage would also count the parent before exec.
    for line in _lines(proc / "self/status"):
        if line.startswith("VmHWM"):
            return round(int(line.split()[1]) * 1024 / GIB, 3)
    try:
        import resource  # absent on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / GIB, 3)


def accelerators() -> list[str]:
    """Names of the accelerators that torch sees, if torch is loaded already."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
