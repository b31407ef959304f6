"""Find where a vision-language model is unsafe, repair its activations without training, prove it.

The public names are below; everything else is an implementation detail of its module. Names are
imported on first use, because most of them need torch: `import care` and `care --help` don't.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from care import defenses, errors
    from care.evaluate import evaluate
    from care.examples import Example, Suite
    from care.examples_file import load_suite
    from care.fitting import RepairConfig
    from care.mediation import diagnose
    from care.repair import Repair
    from care.vlm import VLM

__all__ = [
    "VLM",
    "Example",
    "Repair",
    "RepairConfig",
    "Suite",
    "defenses",
    "diagnose",
    "errors",
    "evaluate",
    "load_suite",
]

_HOMES = {
    "VLM": "vlm",
    "Example": "examples",
    "Repair": "repair",
    "RepairConfig": "fitting",
    "Suite": "examples",
    "diagnose": "mediation",
    "load_suite": "examples_file",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _HOMES:
        found = getattr(import_module(f"care.{_HOMES[name]}"), name)
    elif name in __all__:
        found = import_module(f"care.{name}")
    else:
        raise AttributeError(f"module 'care' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    try:
        return version("care-vlm")
    except PackageNotFoundError:  # run from a source tree that isn't installed
        return "0+unknown"


class _CallableModule(ModuleType):
    """A module that is called like the function of its name."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.evaluate(*args, **options)


class _Package(ModuleType):
    """Makes `care.evaluate(...)` work: the submodule of that name can be called."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "evaluate" and isinstance(value, ModuleType):
            value.__class__ = _CallableModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
