"""``python -m casemate`` is the ``casemate`` command."""

from __future__ import annotations

import sys

from casemate.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
