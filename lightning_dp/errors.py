"""The three ways in which this package speaks up: a refused setting, a broken guarantee, a caution."""

from __future__ import annotations

__all__ = ("PrivacyConfigError", "PrivacyError", "PrivacyWarning")


class PrivacyConfigError(ValueError):
    """A setting was refused before any private data was used; the message names the setting to use instead."""


class PrivacyError(RuntimeError):
    """A guarantee would have been broken at run time (a leak round the engine, a coupled loss, a changed input)."""


class PrivacyWarning(UserWarning):
    """Something is legal but worth knowing before an eps is quoted to anybody."""
