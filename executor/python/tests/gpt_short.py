"""The example of the GPT on short texts, whose steps take a quarter of the time."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import gpt  # noqa: E402

gpt.LENGTH, gpt.ROWS = 64, 2 * gpt.MICROBATCHES

if __name__ == "__main__":
    gpt.main()
