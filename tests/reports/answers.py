"""Public reports of the area: answers."""

from aimo.inference.answers import extract, to_integer
from aimo.inference.judge import are_correct, are_equal


def equal(*pairs):
    return are_equal([answer for answer, _ in pairs], [gold for _, gold in pairs])


def read_as(separator, *integers):
    """A case whose texts answer these integers."""

    def check(case, request):
        assert [to_integer(extract(text)) for text in case["input"].split(separator)] == [*integers]

    return check


def compared(separator, *verdicts):
    """A case of a pair or several, which are equal or not."""

    def check(case, request):
        assert equal(*(pair.split(separator) for pair in case["input"].split("; "))) == [*verdicts]

    return check


A03v = read_as("\0", 7)
A16 = read_as(" | ", 42, 17, 42)
A17v = read_as("; ", 17, 17)
A18 = read_as(" | ", 42, 17, 17)
A05v = compared(" against ", False)
A06 = compared(" vs ", False)
A10v = compared(" against ", True, True)


def A04(case, request):
    completion, gold = case["input"].split("   gold ")
    assert are_correct([completion], [gold]) == [True]


def A08(case, request):
    pairs = [pair.split(" vs ") for pair in case["input"].split("; ")]
    assert equal(*pairs) == [True] * 3 == equal(*(pair[::-1] for pair in pairs))
    assert equal((r"1+\frac{1}{\mathrm{e}}", r"1-\frac1e")) == [False]


def A09(case, request):
    pair = case["input"].split(" (")[0].split(" vs ")
    assert equal(pair, pair[::-1]) == [True, True]
    assert equal(("pi/2", r"\frac{\pi}{2}"), ("-2*pi", r"-2\pi"), ("14.0+-1.0i", "14-i")) == [True] * 3


def A11(case, request):
    assert equal((r"4\sqrt(2)", r"4\sqrt{2}"), (r"4\sqrt(2)", "4")) == [True, False]


def A12(case, request):
    pair = r"m \geq \sqrt{2}", r"m \in [\sqrt{2}, +\infty)"
    assert equal(pair, pair[::-1]) == [True, True]


def A19(case, request):
    assert to_integer(extract(case["input"])) == 16 and are_correct([case["input"]], ["16"]) == [True]


def A23v(case, request):
    text = case["input"].split(" for ")[0]
    assert are_correct([text] * 4, ["7", "A", "8", "B"]) == [True, True, False, False]


def A24(case, request):
    for text in case["input"].split("; "):
        number = to_integer(extract(text))
        assert number in (42, 1024) and are_correct([text], [number]) == [True]


def A25(case, request):
    texts = [text.removeprefix(r"\boxed{").removesuffix("}") for text in case["input"].split("; ")[:2]]
    assert [to_integer(text) for text in [*texts, "–5"]] == [42, 10000, -5]  # noqa: RUF001 (as it was reported)
    assert equal(("0{,}5", r"\frac12"), (r"0.\overline{3}", r"\frac13")) == [True, True]
