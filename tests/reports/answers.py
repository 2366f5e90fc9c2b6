"""Public reports of the area: answers."""

from aimo.inference.answers import extract, to_integer
from aimo.inference.judge import are_correct, are_equal


def equal(*pairs):
    return are_equal([answer for answer, _ in pairs], [gold for _, gold in pairs])


def read_as(separator, *integers):
    """A case whose texts answer these integers."""
    return lambda case: check(case["input"].split(separator), integers)


def check(texts, integers):
    assert [to_integer(extract(text)) for text in texts] == [*integers]
    assert are_correct(texts, integers) == [True] * len(texts)


def compared(separator, verdict, more=()):
    """A case of one pair or several, which are equal or not either way round, and more that are equal."""

    def check(case):
        pairs = [pair.split(" (")[0].split(separator) for pair in case["input"].split("; ")]
        assert {*equal(*pairs), *equal(*(pair[::-1] for pair in pairs))} == {verdict}
        assert all(equal(*more))

    return check


A03v = read_as("\0", 7)
A16 = read_as(" | ", 42, 17, 42)
A17v = read_as("; ", 17, 17)
A18 = read_as(" | ", 42, 17, 17)
A19 = read_as("\0", 16)
A24 = read_as("; ", 42, 1024, 42)
A05v = compared(" against ", False)
A06 = compared(" vs ", False)
A08 = compared(" vs ", True)
A09 = compared(" vs ", True, [("pi/2", r"\frac{\pi}{2}"), ("-2*pi", r"-2\pi"), ("14.0+-1.0i", "14-i")])
A10v = compared(" against ", True)
A11 = compared(" vs ", True)


def A04(case):
    completion, gold = case["input"].split("   gold ")
    assert are_correct([completion], [gold]) == [True]


def A12(case):
    answer, _, gold = case["input"].removeprefix("answer ").partition(", gold ")
    gold = gold.partition(", and the")[0]
    assert equal((answer, gold), (gold, answer)) == [True, True]


def A23v(case):
    text = case["input"].split(" for ")[0]
    assert are_correct([text] * 4, ["7", "A", "8", "B"]) == [True, True, False, False]


def A25(case):
    texts = case["input"].split("; ")
    check(texts[:2], (42, 10000))
    assert to_integer(texts[2]) == -5 and equal((texts[3], r"\frac12"), (texts[4], r"\frac13")) == [
        True,
        True,
    ]
