"""Names of a package that are imported on first use, since most of them need torch.

A face is a table: from a module below the package to the names that it gives. What is said twice,
in the table and for type checkers, a test compares.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def attach(
    package: str, table: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package.

    `table` has the names that each module gives, the module told from the package on; a module
    without names is given itself (`{"errors": []}`). No other name may be a module's: importing it
    would put the module in the name's place.
    """
    homes = {name: module for module, names in table.items() for name in names or [module]}

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = import_module(f"{package}.{homes[name]}")
        found = getattr(home, name) if table[homes[name]] else home
        setattr(sys.modules[package], name, found)
        return found

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return __getattr__, __dir__, sorted(homes)
