"""``python -m flowdiff``: the command line."""

from __future__ import annotations

import sys

from flowdiff.core.cli import main

if __name__ == "__main__":
    sys.exit(main())
