"""A bucket of a real store."""

from __future__ import annotations

from tests.storage.conftest import folder, proxy, seaweed

__all__ = ["folder", "proxy", "seaweed"]  # fixtures
