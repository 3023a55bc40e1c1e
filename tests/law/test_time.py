"""Times such as `50ba`, exact."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ema_cli.errors import UsageError
from ema_cli.law.time import EVERY, Time, Unit, format_number, interval_text, parse_interval

UNITS = ("ep", "ba", "sp", "tok")


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("50ba", Fraction(50), Unit.BATCH),
        ("2ep", Fraction(2), Unit.EPOCH),
        ("0.5ep", Fraction(1, 2), Unit.EPOCH),
        (".5ep", Fraction(1, 2), Unit.EPOCH),
        ("5.ep", Fraction(5), Unit.EPOCH),
        ("007sp", Fraction(7), Unit.SAMPLE),
        ("1e9tok", Fraction(10**9), Unit.TOKEN),
        ("1E+6SP", Fraction(10**6), Unit.SAMPLE),
        ("2.5e-3ep", Fraction(1, 400), Unit.EPOCH),
        ("1e5ep", Fraction(10**5), Unit.EPOCH),
        ("0ba", Fraction(0), Unit.BATCH),
        ("infba", math.inf, Unit.BATCH),
        ("InfEp", math.inf, Unit.EPOCH),
        (" 50ba ", Fraction(50), Unit.BATCH),
        ("50steps", Fraction(50), Unit.BATCH),
        ("50it", Fraction(50), Unit.BATCH),
        ("1e3Iterations", Fraction(1000), Unit.BATCH),
        ("50batches", Fraction(50), Unit.BATCH),
        ("1epoch", Fraction(1), Unit.EPOCH),
        ("2e2epochs", Fraction(200), Unit.EPOCH),
        ("1e9tokens", Fraction(10**9), Unit.TOKEN),
        ("5samples", Fraction(5), Unit.SAMPLE),
        ("infsteps", math.inf, Unit.BATCH),
        ("1e30ba", Fraction(10**30), Unit.BATCH),
        ("1e-30ba", Fraction(1, 10**30), Unit.BATCH),
        ("1" * 40 + "ba", Fraction(int("1" * 40)), Unit.BATCH),
        ("0." + "1" * 39 + "ba", Fraction(int("1" * 39), 10**39), Unit.BATCH),
    ],
)
def test_every_form_of_a_time_is_read_exactly(text: str, value: Fraction | float, unit: Unit):
    """A decimal number, with or without exponent, or `inf`, and a unit in any case."""
    assert Time.parse(text) == Time(value, unit)


@pytest.mark.parametrize(
    "text",
    [
        "50", "0", "0.5", "inf", "1e9", "nan", "nanba", "-5ba", "-0ba", "-infba", "+5ba", "+infba",
        "50stepss", "50 steps", "5 ba", "5b", "50baep", "ba", "", " ", "e5ba", "1e5", "1e+ba", ".ba", ".e1ba",
        "1.2.3ba", "1_000ba", "1,5ep", "1/2ep", "0x10ba", "infinityba", "1e1.5ba", "50ba 2ep",
        "\N{ARABIC-INDIC DIGIT FIVE}ba", "5\N{LATIN SMALL LETTER LONG S}p", "50ba\n2", "50\x00ba",
    ],
)  # fmt: skip
def test_anything_else_is_a_usage_error_that_names_the_option(text: str):
    """A bare number, a sign, NaN, an unknown unit or another notation is refused, with examples in the hint."""
    with pytest.raises(UsageError, match=r"^half_life=: '.*' is not a time$") as raised:
        Time.parse(text, "half_life")
    assert raised.value.exit_code == 2
    assert "50ba" in (raised.value.hint or "")


@pytest.mark.parametrize("text", ["1" * 41 + "ba", "0." + "0" * 40 + "ba", "1e31ba", "1e-31ep", "0e31ba", "1e9999tok"])
def test_more_than_40_digits_or_an_exponent_over_30_is_out_of_range(text: str):
    """Numbers that would take long to compute with are refused, with the limits in the hint."""
    with pytest.raises(UsageError, match=r"^stop=: '.*' is out of range$") as raised:
        Time.parse(text, "stop")
    assert raised.value.hint == "at most 40 digits and an exponent of at most 30"


def test_a_long_text_is_cut_in_the_message():
    """A pasted file does not fill the terminal: 60 characters are shown."""
    with pytest.raises(UsageError) as raised:
        Time.parse("x" * 100_000)
    assert str(raised.value) == f"time: '{'x' * 60}' is not a time"


def test_control_characters_are_escaped():
    """Control characters in a wrong time come back escaped."""
    with pytest.raises(UsageError) as raised:
        Time.parse("5\x1b[2Jba")
    assert "\x1b" not in str(raised.value)
    assert "5\\x1b[2Jba" in str(raised.value)


def test_times_are_exact():
    """0.3ep is three times 0.1ep, which binary floats miss."""
    assert 0.3 // 0.1 == 2
    assert Time.parse("0.3ep").value // Time.parse("0.1ep").value == 3


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("50ba", "50ba"),
        ("050.00ba", "50ba"),
        ("1000ba", "1000ba"),
        ("1000000000tok", "1e9tok"),
        ("1500000tok", "1500000tok"),
        ("0.50ep", "0.5ep"),
        ("0.125ep", "0.125ep"),
        ("12.5ep", "12.5ep"),
        ("1e-3ep", "0.001ep"),
        ("0ba", "0ba"),
        ("INFEP", "infep"),
    ],
)
def test_a_time_is_shown_in_its_shortest_form(text: str, shown: str):
    """Equal times have one text, which names the default output."""
    assert str(Time.parse(text)) == shown


@given(
    digits=st.text("0123456789", min_size=1, max_size=20),
    point=st.integers(0, 20),
    exponent=st.integers(-15, 15),
    unit=st.sampled_from(UNITS),
)
def test_a_time_survives_the_way_through_text(digits: str, point: int, exponent: int, unit: str):
    """Every time that is read is written in a form that reads back as the same time."""
    text = f"{digits[:point]}.{digits[point:]}e{exponent}{unit}"
    time = Time.parse(text)
    assert time.value == Fraction(f"{digits[:point]}.{digits[point:]}e{exponent}")
    assert Time.parse(str(time)) == time


@given(numerator=st.integers(0, 10**6), denominator=st.integers(1, 10**4))
def test_a_clock_that_has_no_end_in_decimals_is_shown_to_six_digits(numerator: int, denominator: int):
    """A third of an epoch is shown as 0.333333, all that fits exactly as it is."""
    value = Fraction(numerator, denominator)
    shown = format_number(value)
    if denominator in (1, 2, 4, 5, 8, 10, 100):
        assert Fraction(shown) == value
    assert float(shown) == pytest.approx(float(value), rel=1e-5)


def test_mean_ages_are_shown_short():
    """A float, which only results are, is shown to six digits."""
    assert str(Time(120.71067811865476, Unit.BATCH)) == "120.711ba"
    assert str(Time(math.inf, Unit.TOKEN)) == "inftok"


def test_a_unit_reads_as_a_word():
    """Sentences say epochs, batches, samples, tokens."""
    assert [unit.plural for unit in Unit] == ["epochs", "batches", "samples", "tokens"]
    assert [str(unit) for unit in Unit] == list(UNITS)


def test_an_interval_is_a_time_or_every():
    """`every` is a value of its own, and written as it is read."""
    assert parse_interval("every") is EVERY
    assert parse_interval("10ba") == Time.parse("10ba")
    assert [interval_text(None), interval_text(Time.parse("10ba"))] == ["every", "10ba"]
    with pytest.raises(UsageError, match=r"^the manifest: 'often' is not a time$"):
        parse_interval("often", subject="the manifest")
