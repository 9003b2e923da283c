"""CSV is opened in spreadsheets, and names in it are foreign: none is run as a formula, and nothing else is changed."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssql_det.report.render_csv import format_csv

STARTS = set("=+-@\t\r\n＝＋－＠")  # noqa: RUF001
TEXTS = st.text(st.sampled_from("=+-@\t\r\n＝'\",;|1.e x") | st.characters(exclude_categories=["Cs"], min_codepoint=1))  # noqa: RUF001


def read_back(*records):
    header, *read = csv.reader(io.StringIO(format_csv(("one", "two"), records), newline=""))
    assert header == ["one", "two"]
    return list(map(tuple, read))


def is_number(text):
    try:
        return set(text) <= set("0123456789+-.eE") and float(text) is not None
    except ValueError:
        return False


def is_formula(text):
    return text[:1] in STARTS and not is_number(text)


@given(st.lists(st.tuples(TEXTS, TEXTS | st.floats(allow_nan=False).map(str))))
def test_no_text_is_a_formula_and_all_others_are_read_back(records):
    read = read_back(*records)
    assert not any(is_formula(cell) for record in read for cell in record)
    assert read == [tuple(f"'{cell}" if is_formula(cell) else cell for cell in record) for record in records]


@pytest.mark.parametrize("number", ["-3.5", "+0.2", "1e-3", "-1E+3", "-.5", "-7.", -2, 1e-9, None])
def test_a_number_stays_one(number):
    assert read_back((number, number)) == [("" if number is None else str(number),) * 2]


@pytest.mark.parametrize("text", ["=1+1", "-2+3", "+cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "\r=1", "-", "-inf", "-1_0"])
def test_a_text_that_looks_like_a_formula_is_marked_as_text(text):
    assert read_back((text, "x")) == [(f"'{text}", "x")]
