"""What `verify` and `report` have to tell, as a program reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ema_cli.cli.json_facts import Facts

if TYPE_CHECKING:
    from ema_cli.cli.outcomes import Page
    from ema_cli.release.signed import Signed
    from ema_cli.release.verify import Against, Verified


def page_facts(page: Page) -> Facts:
    """Return where a page is, and what it lacks."""
    return {"written": {"path": page.path, "bytes": page.nbytes}, "missing": list(page.missing)}


def verified_facts(verified: Verified) -> Facts:
    """Return whether an average holds."""
    return {
        "path": verified.published.path.as_posix(),
        "ok": not verified.problems,
        "files": verified.files,
        "tensors": verified.tensors,
        "bytes": verified.nbytes,
        "problems": list(verified.problems),
        "notes": list(verified.notes),
        "not_compared": list(verified.not_compared),
        "no_part": list(verified.snapshot.no_part),
        "overruled": list(verified.overruled),
        "signature": _signature_facts(verified.signature) if verified.signature is not None else None,
        "against": _against_facts(verified.against) if verified.against is not None else None,
    }


def _signature_facts(signature: Signed) -> Facts:
    return {
        "name": signature.name,
        "checked": signature.checked,
        "signed_by": signature.by.as_posix() if signature.by is not None else None,
        "not_covered": list(signature.not_covered),
    }


def _against_facts(against: Against) -> Facts:
    sample = against.sample
    return {
        "checkpoints": against.checkpoints,
        "tensors": against.tensors,
        "most_elements": sample.most_elements if sample else None,
        "seed": sample.seed if sample else None,
        "bytes_read": against.bytes_read,
        "tensors_different": against.tensors_different,
        "bytes_different": against.bytes_different,
    }
