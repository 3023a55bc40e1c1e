"""A bucket of a real store."""

from __future__ import annotations

from tests.storage.conftest import folder, impatient, proxy, seaweed

__all__ = ["folder", "impatient", "proxy", "seaweed"]  # fixtures
