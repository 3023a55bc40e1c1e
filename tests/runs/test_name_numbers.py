"""Which numbers in the names of a run's checkpoints grow, and what is offered for them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from ema_cli.law.time import Unit
from ema_cli.runs.name_numbers import NameNumbers, number

BATCH, EPOCH = Unit.BATCH, Unit.EPOCH


@pytest.mark.parametrize(
    ("names", "batches", "epochs"),
    [
        ("model_10.pt model_20.pt model_30.pt", "ba", "ep"),
        ("ckpt_001000.pt ckpt_002000.pt", "ba", "ep"),
        ("step_500.pt step_1,000.pt step_1,500.pt", "ba", None),
        ("step_1e3.pt step_2e3.pt", "ba", None),
        ("epoch_2nd_00010.pth epoch_2nd_00020.pth", "ba", "ep"),
        ("run7-1-100.pt run7-1-200.pt run7-2-300.pt", "run7-{ep}-{ba}.pt", "run7-{ep}-*.pt"),
        ("resnet_batch_64_1.pt resnet_batch_64_2.pt", "ba", "ep"),
        ("x9ba12qq-1.pt x9ba12qq-2.pt", "ba", "ep"),
        ("llama-tok32000-1.pt llama-tok32000-2.pt", "ba", "ep"),
        ("m_2026-11-29_10.pt m_2026-11-30_20.pt", "ba", "ep"),
        ("m_20261129_101010_10.pt m_20261129_111010_20.pt", "ba", "ep"),
        ("2026-11-29_10-30-05_5.pt 2026-11-29_11-30-05_6.pt", "ba", "ep"),
        ("2026-11-29_1000.pt 2026-11-29_1500.pt 2026-11-30_2000.pt", "ba", "ep"),
        ("ck_1795961055_5.pt ck_1795961057_6.pt", "ba", "ep"),
        ("Nov29_10-30-12_box_5.pt Nov29_11-40-12_box_6.pt Nov30_09-40-50_box_7.pt", "ba", "ep"),
        ("29.11.2026-5.pt 30.11.2026-6.pt", "ba", "ep"),
        ("10/model_10.pt 20/model_20.pt", "ba", "ep"),
        ("e1s100.pt e1s200.pt e2s300.pt", "e{ep}s{ba}.pt", "e{ep}s*.pt"),
        ("weights.10.pth weights.20.pth", "ba", "ep"),
        ("ckpt-20261129.pt ckpt-20261130.pt", None, None),
        ("10/model.pt 20/model.pt", "ba", "ep"),
        ("model_10_0.51.pt model_20_0.49.pt model_30_0.6.pt", "ba", "ep"),
        ("epoch_0_step_100.pt epoch_0_step_200.pt epoch_1_step_100.pt", "ba", "ep"),
        ("model_10.pt model_20.pt model_final.pt", "ba", "ep"),
        ("alpha.pt beta.pt", None, None),
        ("model_1.pt", "ba", "ep"),
    ],
)
def test_the_number_that_grows_is_offered(names: str, batches: str | None, epochs: str | None) -> None:
    """Settings, dates, times of the day and metrics are not; where several numbers grow, a pattern says which."""
    numbers = NameNumbers.of(names.split())
    assert (numbers.offer(BATCH), numbers.offer(EPOCH)) == (batches, epochs)


@pytest.mark.parametrize(
    ("text", "value"),
    [("001000", 1000), ("1,000", 1000), ("1,234,567", 1234567), ("1e3", 1000), ("1.5", Fraction(3, 2)), ("2.5k", 2500),
     ("3M", 3_000_000), ("1B", 10**9)],
)  # fmt: skip
def test_a_number_is_read_as_people_write_it(text: str, value: Fraction) -> None:
    """Separators of thousands, exponents and the letters k, m and b, exactly."""
    assert number(text) == value
