"""The documentation names everything there is, its links lead somewhere, and its pictures are current."""

from __future__ import annotations

import enum
import inspect
import re
from dataclasses import fields, is_dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from pydantic import BaseModel

import acp_store
from acp_store import (
    AsyncRepository,
    CachedRepository,
    RedisRepository,
    Repository,
    SQLRepository,
    audit,
    errors,
    migrate,
    open_async_repository,
    open_repository,
)
from acp_store.models import Base
from tests.docs.pages import PAGES, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

REFERENCE: Final = ROOT / "docs" / "reference"
OF_FORKS: Final = {"before_fork", "after_fork"}
"""Methods that only the package itself calls."""
KINDS: Final = (SQLRepository, RedisRepository, CachedRepository)
# The sources of facts; anything else would have to be reached by who only wants to install or read.
HOSTS_IN_DOCS: Final = {
    "api.example.org",
    "html.spec.whatwg.org",
    "keepachangelog.com",
    "localhost",
    "redis.io",
    "semver.org",
    "www.sqlite.org",
    "www.postgresql.org",
}


def text_of(name: str) -> str:
    return (REFERENCE / f"{name}.md").read_text(encoding="utf-8")


def section(name: str, heading: str) -> str:
    """What stands under a heading, up to the next one of the same or a higher level."""
    found = re.search(
        rf"^(#+) `?{re.escape(heading)}`?$(.*?)(?=^#{{1,3}} |\Z)", text_of(name), re.DOTALL | re.MULTILINE
    )
    assert found, f"no heading for {heading} in {name}.md"
    return found[2]


def shown(function: Callable[..., Any], name: str) -> str:
    """A signature as the reference writes it: names and defaults, no types but the returned one."""
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
        if parameter.name not in {"self", "cls"}
    ]
    plain = str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    plain = plain.replace(repr(acp_store.UNSET), "UNSET")
    return f"{name}{plain}" if inspect.isclass(function) else f"{name}{plain} -> {signature.return_annotation}"


def public_methods(kind: type) -> dict[str, Callable[..., Any]]:
    """The methods a class defines itself."""
    return {
        name: getattr(kind, name)
        for name, value in vars(kind).items()
        if not name.startswith(("_", "model_")) and (inspect.isfunction(value) or isinstance(value, classmethod))
    }


def result_of(method: Callable[..., Any]) -> str:
    """What a method returns, or what awaiting it gives."""
    return str(inspect.signature(method).return_annotation)


def only_async() -> dict[str, Callable[..., Any]]:
    """The methods of an AsyncRepository that are not a method of a Repository, awaited."""
    lifted = public_methods(Repository)
    return {
        name: method
        for name, method in public_methods(AsyncRepository).items()
        if name not in lifted or result_of(method) != result_of(lifted[name])
    }


def properties(kind: type) -> list[str]:
    """The properties a class defines itself."""
    return [name for name, value in vars(kind).items() if isinstance(value, property) and not name.startswith("_")]


def signatures() -> list[str]:
    found = [
        shown(value, value.__name__) for value in (open_repository, open_async_repository, *KINDS, AsyncRepository)
    ]
    found += [shown(method, f"AsyncRepository.{name}") for name, method in only_async().items()]
    found += [shown(method, name) for name, method in public_methods(Repository).items()]
    found += [
        shown(method, f"{kind.__name__}.{name}")
        for kind in KINDS
        for name, method in public_methods(kind).items()
        if not hasattr(Repository, name) and name not in OF_FORKS
    ]
    found += [
        shown(getattr(module, name), name)
        for module in (migrate, audit)
        for name in module.__all__
        if inspect.isfunction(getattr(module, name)) and name != "include_object"
    ]
    for value in map(acp_store.__dict__.get, acp_store.__all__):
        if inspect.isclass(value) and issubclass(value, BaseModel):
            found += [shown(method, name) for name, method in public_methods(value).items()]
    return found


@pytest.mark.parametrize("signature", signatures())
def test_every_method_is_documented(signature: str) -> None:
    """The reference shows each public function and method with all its options and their defaults."""
    assert f"`{signature}`" in text_of("api")


def test_what_is_only_async_is_known() -> None:
    """A method that is only of an AsyncRepository, or returns something else there, has a place of its own."""
    assert set(only_async()) == {"watch_events", "transaction", "for_owner", "aclose"}


@pytest.mark.parametrize(
    "heading",
    [
        *properties(Repository),
        *(
            f"{kind.__name__}.{name}"
            for kind in (*KINDS, AsyncRepository)
            for name in properties(kind)
            if name not in properties(Repository)
        ),
    ],
)
def test_every_property_is_documented(heading: str) -> None:
    """The reference has a place for each property of a repository, and for those that only one kind of them has."""
    assert section("api", heading)


@pytest.mark.parametrize(
    ("value", "option"),
    [(value, option) for value in (open_repository, *KINDS) for option in inspect.signature(value).parameters],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_every_option_is_documented(value: Callable[..., Any], option: str) -> None:
    """The reference tells what each option of a repository, and of opening one, means."""
    assert re.search(rf"^\| `{option}` \| ", section("api", shown(value, value.__name__)), re.MULTILINE)


@pytest.mark.parametrize("name", [*acp_store.__all__, *migrate.__all__, *audit.__all__])
def test_every_name_is_documented(name: str) -> None:
    """The reference mentions each public name."""
    assert re.search(rf"[`.]{name}\b", text_of("api"))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        (name, field)
        for name in acp_store.__all__
        if inspect.isclass(kind := getattr(acp_store, name)) and not name.endswith("Event")
        for field in (
            kind.model_fields
            if issubclass(kind, BaseModel)
            else kind.__members__
            if issubclass(kind, enum.Enum)
            else [field.name for field in fields(kind)]
            if is_dataclass(kind)
            else []
        )
    ],
)
def test_every_field_is_documented(name: str, field: str) -> None:
    """The reference mentions each field of a record and each member of an enumeration."""
    assert f"`{field}`" in section("api", name)


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_documented(name: str) -> None:
    """Each error says when it comes, what was written, and what to do; and names its attributes."""
    text = section("errors", name)
    if name != "AcpStoreError":
        assert all(word in text for word in ("When: ", "Written: ", "Do: "))
    attributes = re.findall(r"^ {4,8}(\w+): ", (inspect.getdoc(getattr(errors, name)) or ""), re.MULTILINE)
    assert [f"`.{attribute}`" for attribute in attributes if f"`.{attribute}`" not in text] == []


@pytest.mark.parametrize("table", Base.metadata.tables.values(), ids=str)
def test_every_column_is_documented(table: Any) -> None:
    """The reference mentions each column of each table with whether it may be NULL, and each index."""
    text = section("schema", table.name)
    for column in table.columns:
        kind = re.search(rf"^\| `{column.name}` \| (\w+)(\??) \|", text, re.MULTILINE)
        assert kind, column.name
        assert bool(kind[2]) == column.nullable, column.name
    assert [index.name for index in table.indexes if f"`{index.name}`" not in text] == []


def test_er_diagram_is_current() -> None:
    """The picture is what the models say; else run docs/make_er_diagram.py."""
    spec = spec_from_file_location("make_er_diagram", ROOT / "docs" / "make_er_diagram.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (REFERENCE / "er.svg").read_text(encoding="utf-8") == module.diagram()


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    """Each relative link names a file that is there, and a heading that it has."""
    for target in re.findall(r"\]\((?!\w+:)([^)]+)\)", PAGES[name].read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        path = (PAGES[name].parent / file).resolve() if file else PAGES[name]
        assert path.is_file(), target
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), target


def anchors(text: str) -> set[str]:
    """The anchors that headings get, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_nothing_of_this_machine(name: str) -> None:
    """No page names a host but those where facts come from, or a path of the machine it was written on."""
    page = PAGES[name].read_text(encoding="utf-8")
    assert set(re.findall(r"https?://([\w.-]+)", page)) <= HOSTS_IN_DOCS
    assert str(ROOT) not in page
    assert str(Path.home()) not in page


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("docs/")])
def test_every_page_is_linked(name: str) -> None:
    """Whoever starts at the README finds each page."""
    found: set[str] = set()
    queue = ["README.md"]
    while queue:
        page = queue.pop()
        if page in found or page not in PAGES:
            continue
        found.add(page)
        for target in re.findall(r"\]\((?!\w+:)([^)#]+)", PAGES[page].read_text(encoding="utf-8")):
            path = (PAGES[page].parent / target).resolve()
            if path.is_relative_to(ROOT):
                queue.append(str(path.relative_to(ROOT)))
    assert name in found
