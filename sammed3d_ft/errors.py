"""The exception for invalid user input: the class of `prompts`, which cannot import this package."""

from __future__ import annotations

from prompts.errors import InputError

__all__ = ["InputError"]
