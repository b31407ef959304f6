"""The version of the package, as its installation states it.

Read on first use, since the reader of metadata takes longer to import than all else of `care`.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("care-vlm")
except PackageNotFoundError:  # run from a source tree that isn't installed
    __version__ = "0+unknown"
