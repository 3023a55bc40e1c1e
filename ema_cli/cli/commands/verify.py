"""ema-cli verify."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ema_cli.cli import requests
from ema_cli.cli.output import make_printer
from ema_cli.cli.printer import Printer
from ema_cli.cli.verify_options import VerifyOptions
from ema_cli.cli.verify_sentences import not_verified
from ema_cli.dataclass import dataclass
from ema_cli.engines.engine import Engine
from ema_cli.engines.opening import only_works, open_engine
from ema_cli.errors import UsageError, VerificationError, option
from ema_cli.folding.sample import Sample
from ema_cli.manifest.signing import PublicKey, open_public_keys
from ema_cli.release.published import Published, find_averages
from ema_cli.release.verify import Verified, demand_all, verify
from ema_cli.storage.named_paths import check_exists
from ema_cli.system.processors import default_threads

_HINT = "what does not hold must not be used; bring back the files as they were written, or average anew"


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """The averages that `verify` checks, and the folders of the checkpoints with which it makes them again."""

    outputs: tuple[Path, ...]
    against: tuple[Path, ...]
    merge_into: Path | None
    sample: bool
    seed: str | None
    allow_extra: tuple[str, ...]
    signed_by: tuple[PublicKey, ...]
    like_input: bool
    strict: bool
    threads: int
    engine: AbstractContextManager[Engine | None]

    @classmethod
    def resolve(cls, options: VerifyOptions) -> VerifyRequest:
        """Read the options, and check what goes together.

        Raises:
            UsageError: for a value that makes no sense, or a folder that does not exist.
        """
        requests.check_threads(options.threads)
        if options.seed is not None and not options.sample:
            raise UsageError("is for a sample", option="seed", hint=f"add {option('sample', True)}")
        wanted = (
            ("sample", options.against),
            ("strict", options.against or options.signed_by),
            ("like_input", options.against),
            ("merge_into", options.against),
            ("on", options.against),
        )
        for name, applies in wanted:
            if getattr(options, name) and not applies:
                raise UsageError(
                    "of what?",
                    option=name,
                    hint=f"say where the checkpoints are: {option('against')} ckpts/ {option(name)}",
                )
        for path in options.against:
            check_exists(path)
        if not options.outputs:
            raise UsageError("which average?", hint="name it: ema-cli verify release.safetensors")
        return cls(
            options.outputs,
            options.against,
            options.merge_into,
            options.sample,
            options.seed,
            options.allow_extra,
            tuple(open_public_keys(options.signed_by)),
            options.like_input,
            options.strict,
            options.threads or default_threads(),
            nullcontext() if options.on is None else open_engine(options.on),
        )


def run(options: VerifyOptions) -> int:
    """Show of each average whether it holds; return the exit code."""
    if only_works(options.on):
        return 0
    request = VerifyRequest.resolve(options)
    printer = make_printer("verify", as_json=options.as_json)
    found = find_averages(request.outputs, request.allow_extra)
    with request.engine as engine:
        averages = [_verify(published, request, engine, printer) for published in found]
    problem = None
    if any(verified.problems for verified in averages):
        problem = VerificationError(not_verified(averages), hint=_HINT)
    printer.verified(averages, problem)
    return problem.exit_code if problem else 0


def _verify(published: Published, request: VerifyRequest, engine: Engine | None, printer: Printer) -> Verified:
    with printer.progress("verifying") as progress:
        verified = verify(
            published,
            allow_extra=request.allow_extra,
            signed_by=request.signed_by,
            may_name_classes=request.like_input,
            threads=request.threads,
            progress=progress,
        )
    if request.against:
        from ema_cli.release.recompute import verify_against  # which loads numpy

        with printer.progress("averaging") as progress:
            verified = verify_against(
                verified,
                request.against,
                sample=Sample.of(request.seed) if request.sample else None,
                merge_into=request.merge_into,
                threads=request.threads,
                engine=engine,
                progress=progress,
            )
    return demand_all(verified) if request.strict else verified
