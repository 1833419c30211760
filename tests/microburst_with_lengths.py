"""Run microburst so that its answers say their length, as DynamoDB's do: by itself it sends them in chunks."""

from __future__ import annotations

import sys

from microburst import forward  # type: ignore[import-untyped] # it ships no types
from microburst.cli import main  # type: ignore[import-untyped] # it ships no types

if __name__ == "__main__":
    forward.HOP_BY_HOP -= {"content-length"}
    sys.exit(main())
