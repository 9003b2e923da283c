"""Schemes are parsed and printed; an invalid scheme is an error."""

import itertools

import pytest

from ssql_det.core.errors import UserError
from ssql_det.quant import Scheme


@pytest.mark.parametrize(
    ("text", "scheme", "printed"),
    [
        ("minmax", Scheme(), "minmax"),
        ("act=mse", Scheme(act="mse"), "act=mse"),
        ("mse", Scheme("mse", "mse"), "mse"),
        (" weight = centred , act=mse:2.4 ", Scheme("centred", "mse:2.4"), "weight=centred, act=mse:2.4"),
        ("act=mse:2", Scheme(act="mse"), "act=mse"),  # the default exponent
        ("act=percentile:99.90", Scheme(act="percentile:99.9"), "act=percentile:99.9"),
        ("norms=re-estimated", Scheme(norms="re-estimated"), "norms=re-estimated"),
        ("mse:2.4, norms=re-estimated", Scheme("mse:2.4", "mse:2.4", "re-estimated"), "mse:2.4, norms=re-estimated"),
        ("minmax, placement=published", Scheme(), "minmax"),
    ],
)
def test_schemes_are_parsed_and_printed(text, scheme, printed):
    assert Scheme.parse(text) == scheme
    assert str(scheme) == printed
    assert Scheme.parse(printed) == scheme


def test_every_scheme_equals_its_printed_form():
    weights, acts = ("minmax", "mse", "mse:3", "centred"), ("minmax", "percentile:99", "mse", "mse:3")
    schemes = {Scheme(*each) for each in itertools.product(weights, acts, ("trained", "re-estimated"))}
    assert len({str(scheme) for scheme in schemes}) == len(schemes) == 32
    assert all(Scheme.parse(str(scheme)) == scheme for scheme in schemes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("minmx", "unknown weight quantizer 'minmx'; did you mean 'minmax'?"),
        ("act=percentle", "unknown activation quantizer 'percentle'; did you mean 'percentile'?"),
        (
            "weight=percentile",
            "'percentile' is no weight quantizer; use one of adaround, brecq, brecq-fisher, centred, dorefa, lsq, ",
        ),
        ("centred", "'centred' is no activation quantizer"),
        ("wieght=mse", "unknown key 'wieght' in a scheme; did you mean 'weight'?"),
        ("act=mse, act=minmax", "sets act twice"),
        ("mse, act=minmax", "sets act twice"),
        ("act=mse:x", "a quantizer is a name and numbers after colons, as in mse:2.4; got 'mse:x'"),
        ("act=minmax:3", "'minmax' takes 0 parameter"),
        ("act=mse:2:3", "'mse' takes 1 parameter"),
        ("norms=mached", "unknown norms 'mached'; did you mean 'matched'?"),
        ("placement=publisht", "unknown placement 'publisht'; did you mean 'published'?"),
        ("", "unknown weight quantizer ''"),
        ("act=mse:99", "the exponent of mse must be 1 to 10, as in mse:2.4; got 99"),
        ("act=mse:nan", "the exponent of mse must be 1 to 10, as in mse:2.4; got nan"),
        ("act=percentile:50", "a percentile must be greater than 50"),
    ],
)
def test_an_invalid_scheme_is_an_error(text, message):
    with pytest.raises(UserError) as error:
        Scheme.parse(text)
    assert message in str(error.value)
