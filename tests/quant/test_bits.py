"""Bit-widths are values, and schedules pure functions of seed and step."""

from collections import Counter

import pytest

from ssql_det.core.errors import UserError
from ssql_det.quant import Bits, FixedBits, SampledBits, parse_bit_widths


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("FP", Bits.FP),
        ("fp", Bits(None, None)),
        ("4w4a", Bits(4, 4)),
        ("2W4A", Bits(2, 4)),
        ("W4A8", Bits(4, 8)),
        ("8w", Bits(8, None)),
        ("6a", Bits(None, 6)),
        (" 16w16a ", Bits(16, 16)),
    ],
)
def test_bits_are_parsed_and_printed(text, bits):
    assert Bits.parse(text) == bits
    assert Bits.parse(str(bits)) == bits


@pytest.mark.parametrize("text", ["4x4", "", "4", "w", "wa", "4w4w", "4a4w", "-4w4a", "4w4a8", "4.0w4a"])
def test_invalid_text_is_an_error_that_shows_valid_text(text):
    with pytest.raises(UserError, match="write FP, 4w4a"):
        Bits.parse(text)


@pytest.mark.parametrize("width", [0, 1, 17, 40, -4, 4.0, True, "4"])
def test_bits_outside_2_to_16_are_an_error_for_weights_and_activations(width):
    with pytest.raises(UserError, match="weight bits must be 2 to 16"):
        Bits(width, 4)
    with pytest.raises(UserError, match="activation bits must be 2 to 16"):
        Bits(4, width)


@pytest.mark.parametrize("text", ["0w4a", "1w4a", "17w8a", "4w17a"])
def test_parsed_bits_are_checked_too(text):
    with pytest.raises(UserError, match=f"must be 2 to 16, .* in '{text}'"):
        Bits.parse(text)


def test_a_list_of_widths_is_separated_by_commas_and_a_number_means_both():
    assert parse_bit_widths("FP, 8,2w4a,8") == [Bits.FP, Bits(8, 8), Bits(2, 4)]


@pytest.mark.parametrize("text", ["", ",", "FP,", "8;4", "9" * 5000, "8,0x8"])
def test_an_invalid_list_of_widths_is_an_error_in_one_line(text):
    with pytest.raises(UserError, match=r"^cannot read bits .{0,50}; write FP, 4w4a"):
        parse_bit_widths(text)


def test_bits_are_hashable_values():
    assert {Bits(4, 4): "row"}[Bits.parse("4w4a")] == "row"


def test_fixed_bits_never_change():
    assert {FixedBits(Bits(4, 4))(step) for step in range(10)} == {Bits(4, 4)}


def test_sampled_bits_are_a_pure_function_of_seed_and_step():
    draws = [SampledBits(seed=3)(step) for step in range(50)]
    assert draws == [SampledBits(seed=3)(step) for step in range(50)]
    assert draws != [SampledBits(seed=4)(step) for step in range(50)]


def test_sampled_bits_are_the_same_in_every_version():
    assert [str(SampledBits(seed=0)(step)) for step in range(6)] == ["6w5a", "8w6a", "6w7a", "4w4a", "8w7a", "3w4a"]


def test_sampled_bits_are_uniform_over_closed_intervals_and_independent():
    draws = [SampledBits(seed=0)(step) for step in range(7000)]
    pairs = Counter((bits.weight, bits.act) for bits in draws)
    assert set(pairs) == {(weight, act) for weight in range(2, 9) for act in range(4, 9)}
    expected = len(draws) / len(pairs)
    chi_square = sum((count - expected) ** 2 / expected for count in pairs.values())
    assert chi_square < 63.9  # the 99.9 % quantile for 34 degrees of freedom


def test_shared_bits_are_equal_for_weights_and_activations():
    draws = [SampledBits(seed=0, weight=(4, 16), act=(4, 16), shared=True)(step) for step in range(300)]
    assert all(bits.weight == bits.act for bits in draws)
    assert {bits.weight for bits in draws} == set(range(4, 17))


def test_bits_of_several_draws_are_the_least_of_independent_ones():
    draws = [SampledBits(seed=0, draws=2)(step) for step in range(7000)]
    counts = Counter(bits.weight for bits in draws)
    # Both of two draws are above the k-th of 7 widths with probability (1 - k / 7) ** 2.
    expected = {2 + k: len(draws) * ((1 - k / 7) ** 2 - (1 - (k + 1) / 7) ** 2) for k in range(7)}
    chi_square = sum((counts[bits] - count) ** 2 / count for bits, count in expected.items())
    assert chi_square < 22.5  # the 99.9 % quantile for 6 degrees of freedom
    assert all(bits.weight <= SampledBits(seed=0)(step).weight for step, bits in enumerate(draws))


@pytest.mark.parametrize(
    "arguments",
    [
        {"weight": (1, 8)},
        {"act": (4, 17)},
        {"weight": (8, 2)},
        {"shared": True},
    ],
)
def test_invalid_intervals_are_an_error(arguments):
    with pytest.raises(UserError):
        SampledBits(seed=0, **arguments)
