"""Commands of typer, made from dataclasses. Typer splits the words and completes them, and nothing else of it shows.

Words become values here, by the type of their field: typer imports pydantic for that, which takes longer than all else
that starts. Pages of help are drawn by `help_pages`, since typer's change from version to version.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cache
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from ema_cli._version import __version__
from ema_cli.cli.command_line import COMMANDS, options_of
from ema_cli.dataclass import dataclass
from ema_cli.errors import UsageError, option
from ema_cli.storage.names import as_path, name_anonymously, without_secrets

if TYPE_CHECKING:
    from ema_cli.cli.command_line import Options


@dataclass(slots=True)
class Invocation:
    """What is known of a command line, be it understood or not: typer's context object.

    Attributes:
        command: the name of the command, once it is known.
        as_json: whether `--json` is among the words. Those of a command that is not understood have no other meaning.
    """

    command: str | None = None
    as_json: bool = False

    @property
    def hint(self) -> str:
        """Return the name of the page of help that lists what there is."""
        return f"see {' '.join(filter(None, ('ema-cli', self.command)))} {option('help')}"


@dataclass(frozen=True, slots=True)
class Call:
    """A command line that is understood: which command, with which options."""

    command: str
    options: Options


def _print_version(wanted: bool) -> None:
    if wanted:
        from ema_cli.folding.kernel.choice import chosen_kernel  # numpy, which help does without

        typer.echo(f"ema-cli {__version__}\nkernel: {chosen_kernel()}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", help="Print version and kernel, and exit.", is_eager=True, callback=_print_version),
]


class Command(TyperCommand):
    """A command whose values stay words, and whose page of help is drawn by us."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, typer's own included."""
        return list(map(_plain, super().get_params(ctx)))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Note which command it is, and split the words.

        Raises:
            UsageError: for a word that typer would read by letters, and nobody means so: see `with_one_dash`.
        """
        invocation = ctx.ensure_object(Invocation)
        invocation.command = self.name
        words = [] if ctx.resilient_parsing else args  # what is completed may be unfinished
        words = words[: words.index("--")] if "--" in words else words
        short = [word for word in words if word[:1] == "-" != word[1:2]]
        if short:
            from ema_cli.cli.other_words import with_one_dash

            options = {spelling for parameter in self.get_params(ctx) for spelling in parameter.opts}
            for problem in filter(None, (with_one_dash(word, options, invocation.hint) for word in short)):
                raise problem
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the page of help."""
        _print_help(self, ctx)


class Group(TyperGroup):
    """The program, which makes a command when it is called, or listed."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands()

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands, in the order of the help."""
        return list(COMMANDS)

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, typer's own included."""
        return list(map(_plain, super().get_params(ctx)))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Note what an error in the words needs to know, and split them up to the command."""
        ctx.ensure_object(Invocation).as_json = "--json" in args
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the page of help."""
        _print_help(self, ctx)


class _Commands(UserDict[str, Any]):
    """The commands by name, each made when it is looked at."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(COMMANDS))

    def __getitem__(self, name: str) -> Any:
        if name not in self.data:
            raise KeyError(name)
        return make_command(name)


def _print_help(command: TyperCommand | TyperGroup, context: Any) -> None:
    from ema_cli.cli.help_pages import print_page  # which loads rich

    print_page(command, context)


@cache
def make_command(name: str) -> Any:
    """Return typer's command of that name, which returns a `Call`: one, however often this process runs it."""
    options = options_of(name)
    family = _family(options)

    def call(**words: Any) -> Call:
        name_anonymously(bool(words.get("anonymous")))
        return Call(name, family.read(words, Invocation(name).hint))

    declared = [field.parameter for field in family.all_fields()]
    version = Parameter("version", Parameter.KEYWORD_ONLY, default=False, annotation=Version)
    vars(call)["__signature__"] = Signature([*declared, version])
    single = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    single.command(name, cls=Command, help=options.__doc__, epilog=options.EXAMPLES)(call)
    return typer.main.get_command(single)


class _Plain:
    """A parameter as typer made it, whose value stays the word that was typed."""

    def __init__(self, made: TyperOption | TyperArgument) -> None:
        vars(self).update(vars(made))

    def process_value(self, ctx: Any, value: Any) -> Any:
        """Return the value as it is; a callback may say otherwise."""
        callback: Callable[..., Any] | None = vars(self)["callback"]
        return value if callback is None else callback(ctx, self, value)


class _PlainOption(_Plain, TyperOption):
    """An option."""


class _PlainArgument(_Plain, TyperArgument):
    """An argument."""


@cache
def _plain(made: TyperOption | TyperArgument) -> _PlainOption | _PlainArgument:
    """Return the same for the same: typer compares them."""
    return _PlainOption(made) if isinstance(made, TyperOption) else _PlainArgument(made)


@dataclass(frozen=True, slots=True)
class _Field:
    """One option: its name, the type of one value, whether there may be several, what typer is told, its default."""

    name: str
    type: Callable[[str], object]
    several: bool
    info: Any
    default: object

    @property
    def required(self) -> bool:
        return self.default is Parameter.empty

    @property
    def parameter(self) -> Parameter:
        """Return what typer reads: words only, or a flag."""
        if self.type is bool:
            words: Any = bool
        elif self.several:
            words = list[str] | None
        elif get_origin(self.type) is tuple:  # a pair, which typer takes together
            words = tuple[str, str] | None
        else:
            words = str if self.required else str | None
        default = None if self.several else self.default
        annotation = Annotated[words, self.info]
        return Parameter(self.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    def read(self, words: Any, hint: str) -> object:
        """Return the value of what typer read; an error has the `hint`.

        Raises:
            UsageError: for a word that is no such value, and for an argument that is missing.
        """
        if words is None and self.required:
            meaning = self.info.help.rstrip(".")
            raise UsageError(f"{self.info.metavar} is missing: {meaning[0].lower()}{meaning[1:]}", hint=hint)
        if self.several:
            return tuple(self._convert(word, hint) for word in words or ())
        return words if words is None or self.type is bool else self._convert(words, hint)

    def _convert(self, word: str, hint: str) -> object:
        try:
            return as_path(word) if self.type is Path else self.type(word)
        except ValueError:
            kind = getattr(self.type, "__name__", "value")
            flag = f"--{self.name.replace('_', '-')}"
            raise UsageError(
                f"Invalid value for '{flag}': {without_secrets(word)!r} is not a valid {kind}.", hint=hint
            ) from None


@dataclass(frozen=True, slots=True)
class _Family:
    """The options of a command, or those of a dataclass in it, by the names of their fields."""

    make: Callable[..., Any]
    members: Mapping[str, _Field | _Family]

    def all_fields(self) -> Iterator[_Field]:
        """Yield each option, those of a family in its place."""
        for member in self.members.values():
            if isinstance(member, _Field):
                yield member
            else:
                yield from member.all_fields()

    def read(self, words: Mapping[str, Any], hint: str) -> Any:
        """Return the dataclass of the options, from what typer read of each.

        Raises:
            UsageError: as `_Field.read`.
        """
        return self.make(
            **{
                name: member.read(words[name] if isinstance(member, _Field) else words, hint)
                for name, member in self.members.items()
            }
        )


def _family(options: type[Any]) -> _Family:
    """Return the options that a dataclass declares."""
    hints = get_type_hints(options, include_extras=True)
    members: dict[str, _Field | _Family] = {}
    for field in fields(options):
        hint = hints[field.name]
        if isinstance(hint, type):
            members[field.name] = _family(hint)
            continue
        kind, info = get_args(hint)
        several = get_origin(kind) is tuple and ... in get_args(kind)
        kinds = [argument for argument in get_args(kind) if argument not in (type(None), ...)] or [kind]
        default = Parameter.empty if field.default is MISSING else field.default
        members[field.name] = _Field(field.name, kinds[0], several, info, default)
    return _Family(options, members)
