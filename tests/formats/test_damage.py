"""Damaged files: a byte changed, lost or put in, or the end cut off, gives an error of ours or what the library reads.

`DAMAGE_EXAMPLES` in the environment sets how many examples are tried for each format; pytest's
`--hypothesis-show-statistics` then says what came of them.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from ema_cli.errors import EmaError
from ema_cli.formats import open_checkpoint
from tests.formats.damaged import FORMATS, MAX_COMPARED, Damage, Good, content, library_content

MANY = 5 if settings.get_current_profile_name() == "full" else 2
EXAMPLES = int(os.environ.get("DAMAGE_EXAMPLES", MANY * settings.default.max_examples))


DAMAGES = st.builds(
    Damage,
    file=st.integers(0, 255),
    at=st.integers(0, (1 << 20) - 1),
    in_padding=st.booleans(),
    kind=st.sampled_from(["change", "flip", "insert", "remove", "cut"]),
    value=st.binary(min_size=1, max_size=2),
)


# Much alike others: for `make test-full`.
ALIKE = ("universal, tensor parallel", "Megatron-FSDP")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.full] * (name in ALIKE)) for name in FORMATS]
)
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Good:
    """A good checkpoint of each format, read by us as by its library."""
    form = FORMATS[request.param]
    folder = tmp_path_factory.mktemp("damage")
    path = form.write(folder)
    checkpoint = open_checkpoint(path, form.options)
    found = content(checkpoint)
    assert found == library_content(form.load(path), with_bytes=True)
    return Good(form, path, {file: file.read_bytes() for file in form.files(folder)}, checkpoint, found)


@pytest.mark.slow
@settings(
    deadline=None,
    max_examples=EXAMPLES,
    phases=[phase for phase in Phase if phase is not Phase.explain],  # it says no more than the bytes do
    suppress_health_check=[HealthCheck.too_slow],
)
@given(damage=DAMAGES)
def test_damage_gives_an_error_or_what_the_library_reads(good: Good, damage: Damage) -> None:
    """Damage anywhere: an error of ours, or exactly the tensors that the library reads; the old ones if it refuses."""
    file = sorted(good.files)[damage.file % len(good.files)]
    file.write_bytes(damage.do(good.files[file]))
    try:
        event(outcome(good))
    finally:
        file.write_bytes(good.files[file])


def outcome(good: Good) -> str:
    """Check what we make of the damaged checkpoint, and say in a few words what that is."""
    try:
        checkpoint = open_checkpoint(good.path, good.format.options)
        found = content(checkpoint)
    except EmaError:
        return "an error"
    good.format.check(good.path, checkpoint, good.checkpoint)
    if found == good.content:
        return "the original tensors"
    try:
        expected = library_content(good.format.load(good.path), with_bytes=checkpoint.nbytes < MAX_COMPARED)
    except Exception as error:  # a library may raise anything for a damaged file
        raise AssertionError(f"read, but the library refuses it: {error}") from error
    assert found == expected
    return "what the library reads"
