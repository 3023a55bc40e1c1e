"""Which part of an average a process makes: what a user says, and what those say who start processes."""

from __future__ import annotations

import pytest

from ema_cli.engines.part import Part
from ema_cli.errors import UsageError


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, "3/8"),
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, "1/2"),
        ({"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "6", "SLURM_PROCID": "0", "SLURM_NTASKS": "3"}, "5/6"),
        ({"JOB_COMPLETION_INDEX": "2", "JOB_COMPLETIONS": "4"}, "2/4"),
        (
            {
                "SLURM_PROCID": "0", "SLURM_NTASKS": "1",
                "SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "4",
            },
            "3/4",
        ),
        (
            {
                "SLURM_PROCID": "0", "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "4",
            },
            "2/4",
        ),
        ({"PMIX_RANK": "3", "SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, "3/8"),
        ({"PMI_RANK": "3", "PMI_SIZE": "4"}, "3/4"),
    ],
)  # fmt: skip
def test_auto_takes_what_launchers_say(environment: dict[str, str], part: str):
    """Slurm, torchrun and mpirun, also where these run in a job of Slurm's; Kubernetes; an array of Slurm's.

    A job of an array has no number of tasks unless its script asks for one; Slurm's PMIx says the rank alone.
    """
    assert str(Part.parse("auto", environment)) == part


@pytest.mark.parametrize(
    ("text", "environment", "said"),
    [
        ("auto", {}, "nothing in the environment"),
        ("auto", {"JOB_COMPLETION_INDEX": "1"}, "JOB_COMPLETIONS"),
        ("auto", {"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x'"),
        ("8/8", {}, "no part 8 of 8"),
        ("0/0", {}, "no part 0 of 0"),
        ("1", {}, "'1' is no part"),
        ("auto", {"RANK": "3", "WORLD_SIZE": "2"}, "no part 3 of 2, as RANK and WORLD_SIZE say"),
        ("auto", {"RANK": "-1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "no part -1 of 2"),
        ("auto", {"RANK": "0", "WORLD_SIZE": "1000000"}, "1000000 parts are too many, as RANK and WORLD_SIZE say"),
        (
            "auto",
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "3"},
            "SLURM_ARRAY_TASK_ID is 7, which is none of 3 numbers from 1 in steps of 1",
        ),
        (
            "auto",
            {
                "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "4",
            },
            "SLURM_ARRAY_TASK_ID is 7, which is none of 4 numbers from 4 in steps of 2",
        ),
    ],
)  # fmt: skip
def test_what_is_no_part(text: str, environment: dict[str, str], said: str):
    """An error that says what is missing, or who says what cannot be."""
    with pytest.raises(UsageError, match=said):
        Part.parse(text, environment)
