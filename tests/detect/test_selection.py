"""``--scheme auto``: the search among schemes."""

import pytest

from ssql_det.core.errors import UserError
from ssql_det.detect.selection import Trial, parse_auto, search_schemes
from ssql_det.quant import Scheme

CHOICES = {"act": ("minmax", "mse"), "weight": ("minmax", "centred"), "norms": ("trained", "matched")}


def test_each_part_is_chosen_with_the_best_of_the_former_ones():
    costs = {"minmax": 3.0, "mse": 1.0, "centred": 2.0, "trained": 5.0, "matched": 7.0}
    tried = []

    def measure(scheme):
        tried.append(scheme)
        return Trial(scheme, (costs[scheme.act] * costs[scheme.weight], costs[scheme.norms]))

    trials = list(search_schemes(Scheme("centred", "minmax", "matched"), CHOICES, measure))
    assert [str(each) for each in tried] == [
        "weight=centred, norms=matched",
        "weight=centred, act=mse, norms=matched",
        "act=mse, norms=matched",
        "weight=centred, act=mse",
    ]
    assert min(trials, key=lambda trial: trial.score).scheme == Scheme("centred", "mse")
    assert trials[-1].score == pytest.approx((2.0 * 5.0) ** 0.5)


def test_auto_keeps_what_it_does_not_choose():
    assert parse_auto("auto") == Scheme()
    assert parse_auto(" auto , placement=integer, tune=50") == Scheme(placement="integer", tune=50)
    assert parse_auto("weight=centred") is None
    with pytest.raises(UserError, match="--scheme auto chooses weight itself; leave it out"):
        parse_auto("auto, weight=centred")
