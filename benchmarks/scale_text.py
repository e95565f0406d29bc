"""Numbers as people read them: two significant digits, the unit that fits."""

from __future__ import annotations

import math

_BYTES = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
_SECONDS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"))


def short(value: float) -> str:
    """Two digits, more before the point."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "never"
    digits = max(0, 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}" if digits else f"{round(value, 1 - math.floor(math.log10(abs(value)))):,.0f}"


def size(value: float) -> str:
    """Bytes."""
    return _scaled(value, _BYTES)


def duration(value: float) -> str:
    """Seconds."""
    return _scaled(value, _SECONDS)


def amount(value: float) -> str:
    """A count: 1e8 and the like."""
    exponent = math.floor(math.log10(value))
    return f"{value / 10**exponent:.2g}e{exponent}"


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    if not math.isfinite(value):
        return "never"
    factor, unit = next(((f, u) for f, u in units if value >= f), units[-1])
    return f"{short(value / factor)} {unit}"
