"""The built-in problems: true steps, even families, disjoint splits, the same ones in every version."""

import operator
import re
import zlib

from aimo.data import builtin

SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def test_every_step_is_true_and_the_last_one_gives_the_answer():
    for p in builtin.generate(3000, "train", 1):
        steps = p.solution.split("\n")
        assert 2 <= len(steps) <= 6, p
        for step in steps:
            a, sign, b, figure = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", step).groups()
            assert SIGNS[sign](int(a), int(b)) == int(figure), p
        assert int(figure) == p.answer, p


def test_at_least_eight_families_are_drawn_about_evenly_and_no_text_twice():
    drawn = builtin.generate(2000, "train", 0)
    families = [p.family for p in drawn]
    assert len({p.problem for p in drawn}) == 2000 and len(set(families)) >= 8
    assert min(families.count(f) for f in set(families)) > 2000 / len(set(families)) / 2


def test_train_and_heldout_share_no_text_whatever_the_seeds():
    train = {p.problem for seed in range(3) for p in builtin.generate(3000, "train", seed)}
    heldout = {p.problem for seed in range(3) for p in builtin.generate(500, "heldout", seed)}
    assert not train & heldout


def test_a_seed_gives_the_same_problems_in_every_version_and_another_gives_others():
    drawn = [repr(builtin.generate(1000, "train", seed)).encode() for seed in (7, 8)]
    assert zlib.crc32(drawn[0].replace(b"WordProblem", b"Problem")) == 2700548994 and drawn[0] != drawn[1]
