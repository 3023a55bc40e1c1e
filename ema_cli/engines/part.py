"""Which part of an average a process makes: as its user says, or as who started it says in the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError, option

_NUMBERS = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")
_HINT = "as 0/8 to 7/8; auto takes both numbers from Slurm, mpirun, torchrun or Kubernetes"
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
        return cls.of(int(numbers[1]), int(numbers[2]))

    @classmethod
    def of(cls, number: int, count: int) -> Part:
        """Return the part.

        Raises:
            UsageError: where there is no such part.
        """
        if not 0 <= number < count:
            raise UsageError(
                f"there is no part {number} of {count}: they are counted from 0", option="part", hint=_HINT
            )
        return cls(number, count)


def _launched(environment: Mapping[str, str]) -> Part:
    is_array = all(name in environment for name in _ARRAY)
    halves = []
    for number, count in _LAUNCHERS:
        if number in environment and count in environment:
            if environment[count] == "1" and is_array:
                break
            return Part.of(_number(environment, number), _number(environment, count))
        if number in environment:
            halves.append((number, count))
    if is_array:  # whose jobs may have no SLURM_NTASKS
        index, first, of = (_number(environment, name) for name in _ARRAY)
        step = _number(environment, _STEP) if _STEP in environment else 1
        return Part.of((index - first) // max(step, 1), of)
    for number, count in halves:
        raise UsageError(
            f"{number} says which part this is, but not {count} of how many",
            option="part",
            hint=f"where there are 8: {option('part')} ${number}/8",  # in no quotes, in which a shell fills in nothing
        )
    names = ", ".join(number for number, _ in _LAUNCHERS)
    raise UsageError(f"nothing in the environment says which part this is: none of {names}", option="part", hint=_HINT)


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise UsageError(f"{name} is '{environment[name]}', which is no number", option="part", hint=_HINT) from None
