"""The built-in problems: true steps, even families, disjoint splits."""

import operator
import re

from aimo.data import builtin

SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def test_every_step_is_true_and_the_last_one_gives_the_answer():
    for p in builtin.generate(3000, "train", 1):
        steps = p.solution.split("\n")
        assert 2 <= len(steps) <= 6, p
        for step in steps:
            left, right = step.split(" = ")
            a, sign, b = re.fullmatch(r"(\d+) ([-+*/]) (\d+)", left).groups()
            assert SIGNS[sign](int(a), int(b)) == int(right), p
        assert int(steps[-1].split(" = ")[1]) == p.answer, p


def test_there_are_at_least_eight_families_drawn_about_evenly():
    drawn = [p.family for p in builtin.generate(1200, "train", 0)]
    assert len(set(drawn)) >= 8
    assert min(drawn.count(f) for f in set(drawn)) > 1200 / len(set(drawn)) / 2


def test_train_and_heldout_share_no_text_whatever_the_seeds():
    train = {p.problem for seed in range(3) for p in builtin.generate(3000, "train", seed)}
    heldout = {p.problem for seed in range(3) for p in builtin.generate(500, "heldout", seed)}
    assert not train & heldout


def test_one_seed_gives_the_same_problems_and_another_gives_others():
    assert builtin.generate(50, "train", 7) == builtin.generate(50, "train", 7)
    assert builtin.generate(50, "train", 7) != builtin.generate(50, "train", 8)


def test_texts_are_unique():
    drawn = builtin.generate(2000, "train", 0)
    assert len({p.problem for p in drawn}) == 2000
