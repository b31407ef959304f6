"""`python -m care`, for where the command `care` isn't on the path."""

from __future__ import annotations

import sys

from care.interfaces.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
