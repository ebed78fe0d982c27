"""How often Python looks for garbage: seldom in a command that loads modules and ends, else as usual."""

from __future__ import annotations

import gc

_USUAL = gc.get_threshold()
_SELDOM = 50_000  # objects made until it is looked for: modules that are being loaded are none


def collect_seldom() -> None:
    """Look for garbage once in a while, from now on."""
    gc.set_threshold(_SELDOM)


def collect_as_usual() -> None:
    """Look for garbage as often as Python does by itself, from now on."""
    gc.set_threshold(*_USUAL)
