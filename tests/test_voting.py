import random
from collections import Counter
from itertools import product

from aimo import voting


def test_the_leader_has_the_most_votes_and_of_equals_the_smallest():
    assert voting.leader(Counter([3, 1, 3])) == 3
    assert voting.leader(Counter([5, 2])) == voting.leader(Counter([2, 5])) == 2
    assert voting.leader(Counter()) is None


def test_decided_means_that_no_outcome_of_the_rest_changes_the_leader():
    r = random.Random(0)
    decided = 0
    for _ in range(300):
        votes = Counter(r.choices([1, 2, 3], [6, 2, 1], k=r.randint(0, 9)))
        remaining = r.randint(0, 4)
        if voting.is_decided(votes, remaining):
            decided += 1
            for rest in product([0, 1, 2, 3, None], repeat=remaining):
                assert voting.leader(votes + voting.count(rest)) == voting.leader(votes)
    assert decided > 30


def test_a_vote_is_decided_as_soon_as_more_than_half_agree():
    assert voting.is_decided(Counter({7: 9}), 7)
    assert not voting.is_decided(Counter({7: 8}), 8)


def test_majority_of_one_is_pass_at_1_and_of_all_is_the_vote():
    answers = [4, 4, 4, 9, None, 9, 1, 2]
    r = random.Random(0)
    assert abs(voting.maj_at(answers, 4, 1, r, draws=4000) - 3 / 8) < 0.04
    assert voting.maj_at(answers, 4, 8, r) == 1.0
    assert voting.maj_at(answers, 9, 8, r) == 0.0
