"""Which part of an average a process makes: as its user says, or as who started it says in the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError, option

_NUMBERS = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")
_HINT = "as 0/8 to 7/8; auto takes both numbers from Slurm, mpirun, torchrun or Kubernetes"
_MOST_PARTS = 999_999
# Who starts processes says in the environment which of how many a process is. What lies inside comes first: mpirun, or
# torchrun, may run in a job of Slurm's.
_LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("RANK", "WORLD_SIZE"),
    ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
)
_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
_STEP = "SLURM_ARRAY_TASK_STEP"


@dataclass(frozen=True, slots=True)
class Part:
    """Which part, from 0, of how many."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> Part:
        """Read what a user gives, as `3/8`, or `auto`.

        Raises:
            UsageError: for anything else; for `auto` where nothing says which part this is.
        """
        if text == "auto":
            return _launched(environment)
        numbers = _NUMBERS.fullmatch(text)
        if numbers is None:
            raise UsageError(f"'{text}' is no part", option="part", hint=_HINT)
        return _checked(int(numbers[1]), int(numbers[2]))


def _launched(environment: Mapping[str, str]) -> Part:
    is_array = all(name in environment for name in _ARRAY)
    halves = []
    for number, count in _LAUNCHERS:
        if number in environment and count in environment:
            if environment[count] == "1" and is_array:
                break
            said = f", as {number} and {count} say"
            return _checked(_number(environment, number), _number(environment, count), said)
        if number in environment:
            halves.append((number, count))
    if is_array:  # whose jobs may have no SLURM_NTASKS
        index, first, of = (_number(environment, name) for name in _ARRAY)
        step = _number(environment, _STEP) if _STEP in environment else 1
        at, rest = divmod(index - first, max(step, 1))
        if rest or not 0 <= at < of:  # as of a list of numbers, which may have gaps
            raise UsageError(
                f"{_ARRAY[0]} is {index}, which is none of {of} numbers from {first} in steps of {step}",
                option="part",
                hint="number the jobs without gaps, as sbatch --array=0-7",
            )
        return _checked(at, of, f", as {_ARRAY[2]} says")
    for number, count in halves:
        raise UsageError(
            f"{number} says which part this is, but not {count} of how many",
            option="part",
            hint=f"where there are 8: {option('part')} ${number}/8",  # in no quotes, in which a shell fills in nothing
        )
    names = ", ".join(number for number, _ in _LAUNCHERS)
    raise UsageError(f"nothing in the environment says which part this is: none of {names}", option="part", hint=_HINT)


def _checked(number: int, count: int, said: str = "") -> Part:
    """Return the part; `said` is who says so, for messages.

    Raises:
        UsageError: where there is no such part.
    """
    if count > _MOST_PARTS:
        raise UsageError(f"{count} parts are too many{said}: {_MOST_PARTS} at most", option="part", hint=_HINT)
    if not 0 <= number < count:
        raise UsageError(
            f"there is no part {number} of {count}{said}: they are counted from 0", option="part", hint=_HINT
        )
    return Part(number, count)


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise UsageError(f"{name} is '{environment[name]}', which is no number", option="part", hint=_HINT) from None
