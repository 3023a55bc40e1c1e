"""The metric: the last number on the last line, or a key of the last JSON object."""

from __future__ import annotations

import pytest

from ema_cli.tuning.metric import EvaluationFailed, read_metric


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.25", 0.25),
        ("epoch 3/10 loss=0.25\n", 0.25),
        ("9\nloss: -1.5e-3\n\n", -1.5e-3),
        ("accuracy 93.5%", 93.5),
        ("perplexity 1,234.5", 1234.5),
        ("\x1b[32mtop-1 7\x1b[0m", 7.0),
        (" 10%|#   |\r100%|####| loss .5", 0.5),
        ("mmlu5 score 12", 12.0),
        ("+3.", 3.0),
    ],
)
def test_the_last_number_of_the_last_line(text: str, value: float):
    """Colours, bars that overwrite themselves, percent and thousands are what evaluations print."""
    assert read_metric(text, None) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"eval_loss": 0.5}', 0.5),
        ('{"eval_loss": 3}\nlog {x}\n{"a": {"eval_loss": 9}, "eval_loss": 2}\ndone {"', 2.0),
        ('{\n  "eval_loss": 1e-3,\n  "n": [1, 2]\n}\n', 1e-3),
        ('{"eval_loss": 1} {"other": {"eval_loss": 5}}\n{"eval_loss": 4}', 4.0),
    ],
)
def test_a_key_of_the_last_json_object(text: str, value: float):
    """On one line or several, with anything around it; objects inside others do not count."""
    assert read_metric(text, "eval_loss") == value


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("", None, "printed nothing"),
        ("0.5\nfinished", None, "no number: 'finished'"),
        ("loss nan", None, "its metric is nan"),
        ("loss -Infinity", None, "its metric is -inf"),
        ("loss: 1.0", "eval_loss", "no JSON object"),
        ('{"acc": 1, "name": "x"}', "eval_loss", "'eval_loss'; it has acc"),
        ('{"eval_loss": "low"}', "eval_loss", "it has none"),
        ('{"eval_loss": true}', "eval_loss", "no number"),
        pytest.param(f'{{"eval_loss": 1{"0" * 400}}}', "eval_loss", "its metric is inf", id="large"),
        ("loss -1.7e308", None, r"its metric is -1\.7e\+308"),
        ('{"eval_loss": NaN}', "eval_loss", "its metric is nan"),
        ("step400", None, "no number"),
    ],
)
def test_where_there_is_no_metric_the_reason_says_so(text: str, name: str | None, words: str):
    """NaN is no metric: nothing could be compared with it."""
    with pytest.raises(EvaluationFailed, match=words):
        read_metric(text, name)
