"""What all commands share: three options, and how a function becomes a command that has them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from acp_store.repository import Repository

__all__ = ["Shared", "command", "group", "shared_options"]


@dataclass(frozen=True, slots=True)
class Shared:
    """What the shared options say."""

    url: str | None
    schema: str | None
    json: bool

    @property
    def as_json(self) -> bool:
        """Whether to print JSON: asked for, or nobody is there to read a table."""
        return self.json or not sys.stdout.isatty()

    @property
    def database(self) -> str:
        """The URL of the database to work on."""
        from acp_store.connect import resolve_url

        return resolve_url(self.url)

    def open(self, **options: Any) -> Repository:
        """Open the repository to work on."""
        from acp_store.connect import open_repository
        from acp_store.repository import given

        return open_repository(self.database, **given(schema=self.schema), **options)


def shared_options(
    context: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The database, as sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME "
            "[default: $DATABASE_URL, else sqlite:///acp.db]",
        ),
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="PostgreSQL schema that holds the tables [default: as the role's search_path says]",
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON, one object a line [default: where stdout is no terminal]"),
    ] = False,
) -> None:
    """Take the options where they stand before a command."""
    context.obj = Shared(url, schema, json)


def group(description: str) -> typer.Typer:
    """Return a group of commands."""
    return typer.Typer(
        help=description,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def command(app: typer.Typer, name: str, *, without: Collection[str] = ()) -> Callable[[Callable[..., None]], None]:
    """Return a decorator that makes a command of a function that takes `Shared` first.

    The command has the function's other parameters, and the shared options after them.

    Args:
        app: The group to add it to.
        name: What it is called there.
        without: Shared options that it has not, and refuses where they stand before it.
    """

    def register(function: Callable[..., None]) -> None:
        def run(context: typer.Context, **given: Any) -> None:
            before: Shared = context.obj
            for option in without:
                if getattr(before, option):
                    raise typer.BadParameter(f"{name} has no such option", context, param_hint=f"'--{option}'")
            url, schema, json = (given.pop(each, None) or getattr(before, each) for each in ("url", "schema", "json"))
            function(Shared(url, schema, json), **given)

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        shared = inspect.signature(shared_options, eval_str=True).parameters.values()
        wanted = [each for each in shared if each.name not in without]
        parameters = [each.replace(kind=each.KEYWORD_ONLY) for each in (*own, *wanted)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        run.__doc__ = function.__doc__
        app.command(name)(run)

    return register
