"""What all records share: the base class, the types of ids and times, and making a record of what is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias, TypeVar, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, PlainSerializer, ValidationError
from pydantic_core import core_schema, from_json

from acp_store.errors import PayloadError

__all__ = [
    "Id",
    "Record",
    "Time",
    "as_record",
    "assigned",
    "has_declared_order",
    "is_none",
    "is_plain",
    "restore_order",
    "utc_now",
    "validated",
]


def utc_now() -> datetime:
    """Return the current time, aware, in UTC."""
    return datetime.now(UTC)


def _time_to_json(value: datetime) -> str:
    if value.tzinfo is None:
        raise ValueError(f"naive time {value.isoformat()}: give it a time zone, as in datetime.now(timezone.utc)")
    text = value.isoformat()
    if text.endswith("+00:00"):
        return f"{text[:-6]}Z"
    offset = value.utcoffset()
    if offset and offset % timedelta(minutes=1):  # RFC 3339 knows no seconds in an offset
        return _time_to_json(value.astimezone(UTC))
    return text


def _id_to_str(value: object) -> object:
    return str(value) if isinstance(value, UUID) else value


class _OrUUID:
    """Has a UUID taken for its text; not looked for in JSON, which has none."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        text = handler(source)
        either = core_schema.no_info_before_validator_function(_id_to_str, text)
        return core_schema.json_or_python_schema(json_schema=text, python_schema=either)


Id = Annotated[str, _OrUUID]
Time = Annotated[datetime, PlainSerializer(_time_to_json, when_used="json-unless-none")]


def is_none(value: object) -> bool:
    """Whether a field is left out of the JSON that is written only when it has a value."""
    return value is None


_Nesting: TypeAlias = tuple[tuple[str, frozenset[type]], ...]


class Record(BaseModel):
    """What all records share: unknown fields are kept, and so are the given fields and their order."""

    model_config = ConfigDict(extra="allow", ser_json_inf_nan="constants", populate_by_name=False)

    # Fields that a record built in Python always writes, besides those it was given.
    _always: ClassVar[tuple[str, ...]] = ()
    # Lists that may be filled in place while unset.
    _lists: ClassVar[tuple[str, ...]] = ()
    declared_order: ClassVar[tuple[str, ...]] = ()
    # For each field the types of its values, and those of the items of a list.
    _kinds: ClassVar[tuple[tuple[frozenset[type], frozenset[type]], ...]] = ()
    # What `is_plain` has found: by the names and types of all values the fields in which there are records.
    _plain_looks: ClassVar[dict[tuple[Any, ...], _Nesting]] = {}

    def __init__(self, /, **data: Any) -> None:
        super().__init__(**data)
        self.__pydantic_fields_set__.update(self._always)

    # Tells pydantic that parsing may skip this __init__, as it may BaseModel's own: what is parsed
    # keeps the set of fields it came with.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        cls.declared_order = tuple(cls.model_fields)
        cls._plain_looks = {}
        cls._kinds = tuple(_kinds_of(field.annotation) for field in cls.model_fields.values())

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Validate `obj` as pydantic does, keeping the order in which a mapping's keys came."""
        record = super().model_validate(obj, **options)
        restore_order(record, obj)
        return record

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """Validate JSON text as pydantic does, keeping the order in which the keys came."""
        record = super().model_validate_json(json_data, **options)
        restore_order(record, from_json(json_data))
        return record

    def model_dump(self, *, exclude_unset: bool = True, **options: Any) -> dict[str, Any]:
        """Return the wire form as a dict: the fields that were given or set."""
        self.__pydantic_fields_set__.update(self.filled_lists())
        return super().model_dump(exclude_unset=exclude_unset, **options)

    def model_dump_json(self, *, exclude_unset: bool = True, **options: Any) -> str:
        """Return the wire JSON: the fields that were given or set."""
        self.__pydantic_fields_set__.update(self.filled_lists())
        return super().model_dump_json(exclude_unset=exclude_unset, **options)

    def filled_lists(self) -> list[str]:
        """Return the names of the list fields that hold something, set or only appended to."""
        return [name for name in self._lists if self.__dict__[name]]


def _kinds_of(annotation: Any) -> tuple[frozenset[type], frozenset[type]]:
    """Return the types that values of a field have, and the items of its lists, as far as they are simple ones."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kinds_of(arguments[0])
    if origin in {Union, UnionType}:
        both = [_kinds_of(argument) for argument in arguments]
        return frozenset().union(*[kinds for kinds, _ in both]), frozenset().union(*[items for _, items in both])
    if origin is list:
        return frozenset({list}), _kinds_of(arguments[0])[0]
    if origin is Literal:
        return frozenset(map(type, arguments)), frozenset()
    return frozenset({NoneType, str, int, bool} if annotation is Any else {annotation}), frozenset()


def restore_order(value: object, source: object) -> None:
    """Put the fields of `value`, and of the records inside it, into the order of `source`'s keys.

    pydantic writes fields in the order of the instance's ``__dict__`` and fills that in the order
    of declaration, whatever order the input had.
    """
    if value is source:
        return
    if isinstance(value, Record) and isinstance(source, Mapping):
        fields = value.__dict__
        given = [name for name in source if name in fields]
        if given != [name for name in fields if name in source]:
            ordered = {name: fields[name] for name in given}
            ordered.update(fields)
            fields.clear()
            fields.update(ordered)
        for name in given:
            restore_order(fields[name], source[name])
    elif isinstance(value, list) and isinstance(source, list):
        for item, item_source in zip(value, source, strict=False):
            restore_order(item, item_source)


def has_declared_order(value: object) -> bool:
    """Whether parsing the JSON of `value` again would give its fields in the order they have now."""
    if isinstance(value, list):
        return all(has_declared_order(item) for item in value if isinstance(item, Record))
    if isinstance(value, Record):
        fields = value.__dict__
        return tuple(fields) == value.declared_order and all(
            has_declared_order(item) for item in fields.values() if isinstance(item, (Record, list))
        )
    return True


def is_plain(value: object) -> bool:
    """Whether a record, or each of a list, has but known fields, in the declared order, with values of simple types.

    So far as they are declared: nothing then has to be looked at when it is written. Most records are plain.
    """
    if isinstance(value, list):
        return all(isinstance(item, Record) and is_plain(item) for item in value)
    return isinstance(value, Record) and _is_plain(value)


def _is_plain(record: Record) -> bool:
    fields = record.__dict__
    if record.__pydantic_extra__:
        return False
    look = (*fields, *map(type, fields.values()))
    nesting = record._plain_looks.get(look)  # noqa: SLF001
    if nesting is None:
        nesting = _nesting(record)
        if nesting is None:
            return False
        record._plain_looks[look] = nesting  # noqa: SLF001
    for name, kinds in nesting:
        nested = fields[name]
        for item in nested if type(nested) is list else (nested,):
            kind = type(item)
            if kind not in kinds or (kind is not str and not _is_plain(item)):
                return False
    return True


def _nesting(record: Record) -> _Nesting | None:
    """Return the fields of a record that hold records, or lists of them and of strings; None if it is not plain."""
    fields = record.__dict__
    if tuple(fields) != record.declared_order:
        return None
    found = []
    for (name, value), (kinds, items) in zip(fields.items(), record._kinds, strict=True):  # noqa: SLF001
        if type(value) not in kinds:
            return None
        if isinstance(value, list):
            found.append((name, items))
        elif isinstance(value, Record):
            found.append((name, kinds))
    return tuple(found)


R = TypeVar("R", bound=Record)


def assigned(record: R, **values: Any) -> R:
    """Return a shallow copy of a record with what a store assigns: `Record.model_copy` at half its cost."""
    if record.__pydantic_private__ is not None:
        copy = record.model_copy()
        copy.__dict__.update(values)
        return copy
    copy = object.__new__(type(record))
    put = object.__setattr__
    put(copy, "__dict__", record.__dict__ | values)
    put(copy, "__pydantic_extra__", (record.__pydantic_extra__ or {}).copy())
    put(copy, "__pydantic_fields_set__", record.__pydantic_fields_set__.copy())
    put(copy, "__pydantic_private__", None)
    return copy


def as_record(kind: type[R], value: object) -> R:
    """Return `value` as a record of `kind`: itself, or made from a mapping or another pydantic model.

    Raises:
        PayloadError: It is none of these, or not of the right shape.
    """
    if isinstance(value, kind):
        return value
    return validated(kind.__name__.lower(), kind.model_validate, value)


def validated(noun: str, validate: Callable[[Any], R], value: object) -> R:
    """Return ``validate(value)`` of a mapping or pydantic model.

    Raises:
        PayloadError: It is neither, or `validate` refuses it; one line that says where.
    """
    if isinstance(value, BaseModel):
        try:
            value = value.model_dump(mode="json", by_alias=True)
        except ValueError as error:  # pydantic raises a bare one for a cycle and for too many levels
            raise PayloadError(f"{noun} refused: {error}") from error
    if not isinstance(value, Mapping):
        raise PayloadError(f"not a JSON object: {type(value).__name__} given where {noun} is wanted")
    try:
        return validate(dict(value))
    except ValidationError as error:
        raise PayloadError(f"{noun} refused: {_first_problem(error)}") from error


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(map(str, problem["loc"]))
    return f"{place}: {problem['msg']}" if place else problem["msg"]
