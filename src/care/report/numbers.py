"""How numbers are written on the page and in the headline: one format for each kind of figure."""

from __future__ import annotations


def percent(share: float | None) -> str:
    """A fraction as a percentage with one decimal, e.g. `12.5%`."""
    return "n/a" if share is None else f"{100 * share:.1f}%"


def points(change: float | None) -> str:
    """A change in percentage points with a sign, e.g. `+0.8` or `\N{MINUS SIGN}1.2`."""
    if change is None:
        return "n/a"
    rounded = round(change, 1)
    return "0.0" if rounded == 0 else f"{rounded:+.1f}".replace("-", "\N{MINUS SIGN}")


def number(value: float) -> str:
    """Three significant digits with a real minus sign; huge and tiny values in powers of ten."""
    value += 0.0  # so that −0 is 0
    size = abs(value)
    if size and not 1e-3 <= size < 1e5:
        text = f"{value:.1e}"
    else:
        text = f"{value:.3g}" if size < 100 else f"{value:.0f}"
    return text.replace("-", "\N{MINUS SIGN}")


def p_value(p: float | None) -> str:
    """Two significant digits, never a bare zero."""
    if p is None:
        return "n/a"
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
