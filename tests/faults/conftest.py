"""One run to average for all fault tests, and how many faults there were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.faults.harness import INJECTED, Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A Hugging Face run, its average as file and folder, and an older average."""
    with ExitStack() as cleanup:
        yield Bench(tmp_path_factory.mktemp("bench"), cleanup)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many faults were injected: a test that injects none proves nothing."""
    if INJECTED:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(INJECTED.items()))
        terminalreporter.write_line(f"faults injected: {counts}")
