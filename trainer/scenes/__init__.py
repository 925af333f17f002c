"""Synthetic scenes with exact depth, for training and for the demo recording.

`python -m trainer.scenes --out DIR --count N --split train --seed 1` writes samples; see `__main__.py`.
"""

from __future__ import annotations


def main(argv: list[str] | None = None) -> int:
    """Runs the program of this package (see `__main__.py`)."""
    from .__main__ import main as run

    return run(argv)
