"""Numbers as a reader wants them: rounded to their error, with a true minus sign."""

import math
from collections.abc import Mapping

__all__ = ["format_cost", "format_number", "format_value", "power_of_ten"]

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_THIN_SPACE = "\u202f"


def format_number(value: object, digits: int = 4) -> str:
    """Return a number as text with `digits` significant digits.

    Integers are written in full, thousands apart. Floats from 1e-3 to 1e5 are written
    plainly, others as m × 10ⁿ; one that needs fewer digits (0.05) is written with
    those. NaN and the infinities are written as such.

    Args:
        value: A number, or anything with `item()` that gives one; other objects are
            returned as their text, None and "" as a dash.
        digits: Significant digits of a float, at least 1.
    """
    value = _plain(value)
    if value is None or value == "":
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return _integer(value)
    number = float(value)
    if not math.isfinite(number):
        return _non_finite(number)
    if number == 0.0:
        return "0"
    exponent = int(f"{number:.{digits - 1}e}".partition("e")[2])
    digits = next(
        d for d in range(1, digits + 1) if d == digits or _is_short(number, d)
    )
    if -3 <= exponent < 5:
        return _signed(f"{number:.{max(digits - 1 - exponent, 0)}f}")
    mantissa = _signed(f"{number:.{digits - 1}e}".partition("e")[0])
    return f"{mantissa} × {power_of_ten(exponent)}"


def format_value(value: object, stderr: object = None, digits: int = 4) -> str:
    """Return "value ± stderr", both rounded to two digits of the standard error.

    Without a finite positive `stderr` the value stands alone, or beside it where the
    error is NaN or infinite: an error that could not be estimated is shown, not hidden.
    """
    value, stderr = _plain(value), _plain(stderr)
    if (
        stderr is None
        or not isinstance(value, int | float)
        or not isinstance(stderr, int | float)
    ):
        return format_number(value, digits)
    error = float(stderr)
    if not math.isfinite(error) or not math.isfinite(float(value)):
        return f"{format_number(value, digits)} ± {format_number(error, 2)}"
    if error == 0.0:
        return f"{format_number(value, digits)} ± 0"
    exponent = math.floor(math.log10(max(abs(float(value)), error)))
    plain = -3 <= exponent < 5 and error < 99.5  # all digits written are meant
    scale = 0 if plain else exponent
    places = max(1 - math.floor(math.log10(error)) + scale, 0)
    mantissa = _signed(f"{float(value) / 10.0**scale:.{places}f}")
    spread = f"{error / 10.0**scale:.{places}f}"
    if scale == 0:
        return f"{mantissa} ± {spread}"
    return f"({mantissa} ± {spread}) × {power_of_ten(scale)}"


def format_cost(cost: str | Mapping[str, object]) -> str:
    """Return a cost as text, {"products": 20, "seconds": 1.2} as "20 products, 1.2 s".

    Entries that are no numbers (the host) and `cpu_seconds` are left to the data.
    """
    if isinstance(cost, str):
        return cost
    words = []
    for name, amount in cost.items():
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            continue
        if name == "seconds":
            words.append(f"{format_number(float(amount), 3)} s")
        elif name != "cpu_seconds":
            number = int(amount) if float(amount).is_integer() else amount
            words.append(f"{format_number(number)} {_counted(name, float(amount))}")
    return ", ".join(words)


def _counted(name: str, amount: float) -> str:
    plural = {"forward": "forward passes", "backward": "backward passes"}
    word = plural.get(name, name.replace("_", " "))
    if amount != 1:
        return word
    return (
        word.removesuffix("es") if word.endswith("passes") else word.removesuffix("s")
    )


def _is_short(number: float, digits: int) -> bool:
    """Return whether these digits are all there are, to the precision of float32."""
    return abs(float(f"{number:.{digits - 1}e}") - number) <= 1e-7 * abs(number)


def _plain(value: object) -> object:
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "size", 1) == 1 else value


def _integer(value: int) -> str:
    if abs(value) < 10_000:
        return _signed(str(value))
    return _signed(f"{value:,}".replace(",", _THIN_SPACE))


def _non_finite(number: float) -> str:
    if math.isnan(number):
        return "NaN"
    return "∞" if number > 0 else "−∞"


def _signed(text: str) -> str:
    """Return a number's text with a true minus sign, and none before zero."""
    if text.startswith("-") and not text.strip("-0."):
        return text[1:]
    return text.replace("-", "−")


def power_of_ten(exponent: int) -> str:
    """Return "10ⁿ"."""
    return f"10{str(exponent).translate(_SUPERSCRIPTS)}"
