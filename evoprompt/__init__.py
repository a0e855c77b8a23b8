"""Label-free evolution of pixel prompts for no-reference image quality assessment."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Scorer", "__version__"]


def __getattr__(name: str) -> Any:
    """Load ``Scorer`` when it is asked for: importing torch takes seconds, and not everyone who imports us needs it."""
    if name == "Scorer":
        from evoprompt.scoring import Scorer

        return Scorer
    raise AttributeError(f"module 'evoprompt' has no attribute {name!r}")
