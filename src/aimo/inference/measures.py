"""Equality of times of day, and of lengths, masses and durations that both have a unit.

Out of scope: a value without a unit, which equals the same one with any unit (`equivalence`).
"""

import re
from fractions import Fraction

from aimo.inference.arithmetic import compute

UNITS = {  # what one is in metres, grams or seconds
    "length": {
        "m": "1", "mm": "1/1000", "cm": "1/100", "km": "1000", "in": "127/5000", "ft": "381/1250",
        "mi": "201168/125",
    },
    "mass": {"g": "1", "mg": "1/1000", "kg": "1000", "lb": "45359237/100000", "oz": "45359237/1600000"},
    "time": {"s": "1", "min": "60", "h": "3600"},
}  # fmt: skip
NAMES = {
    "meter": "m", "metre": "m", "millimeter": "mm", "centimeter": "cm", "kilometer": "km", "inch": "in",
    "inches": "in", "foot": "ft", "feet": "ft", "mile": "mi", "gram": "g", "milligram": "mg",
    "kilogram": "kg", "pound": "lb", "ounce": "oz", "sec": "s", "second": "s", "minute": "min", "hour": "h",
    "hr": "h",
}  # fmt: skip
SCALES = {unit: (kind, Fraction(scale)) for kind, units in UNITS.items() for unit, scale in units.items()}
SCALES |= {name: SCALES[unit] for name, unit in NAMES.items()}
TEXT = re.compile(r"\\(?:text|mathrm)\{([^{}]*)\}|\\[!,;: ]|[$~\s]")
MEASURE = re.compile(rf"(.*[\d)}}])({'|'.join(sorted(SCALES, key=len, reverse=True))})(?:s|\.)?")
CLOCK = re.compile(r"(\d{1,2})(?::(\d\d))?(?:([ap])\.?m\.?)?", re.IGNORECASE)


def same(answer: str, gold: str) -> bool | None:
    """Whether two measures, or two times of day, are equal; None where one of them is neither."""
    if not re.search("[A-Za-z]", gold) or len(answer + gold) > 200:
        return None
    a, b = (TEXT.sub(r"\1", TEXT.sub(r"\1", text)) for text in (answer, gold))
    verdict = same_time(a, b)
    return same_measure(a, b) if verdict is None else verdict


def same_time(answer: str, gold: str) -> bool | None:
    """Whether two times are equal, such as `3:30pm` and `15:30`; None where none has a.m. or p.m."""
    found = [match for text in (answer, gold) if (match := CLOCK.fullmatch(text))]
    if len(found) < 2 or not any(match[3] for match in found):
        return None
    one, other = (possible_hours(int(match[1]), match[3]) for match in found)
    return bool(one & other) and int(found[0][2] or 0) == int(found[1][2] or 0)


def possible_hours(hour: int, half: str | None) -> set[int]:
    """The hours of a day that a clock's hour may be: two of them where the half of the day is not given."""
    if half:
        return {hour % 12 + 12 * (half.lower() == "p")}
    return {hour % 24, (hour + 12) % 24} if hour <= 12 else {hour}


def same_measure(answer: str, gold: str) -> bool | None:
    """Whether two measures are equal, such as `5km` and `5000m`; None where one has no unit or no value."""
    sizes = []
    for text in (answer, gold):
        match = MEASURE.fullmatch(text)
        value = compute(match[1]) if match else None
        if match is None or value is None:
            return None
        kind, scale = SCALES[match[2]]
        sizes.append((kind, value * scale))
    return sizes[0] == sizes[1]
