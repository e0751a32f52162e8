"""Read `campaign.yaml`. Each fault is one sentence with the line, the field, its value, and what would be right."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from campaign_pipeline.campaigns.model import CampaignFile

FieldPath = tuple[str | int, ...]

LONGEST_SHOWN = 60
"""Most characters of a value that a sentence quotes."""


class CampaignFileError(ValueError):
    """The file cannot be used; the message has one sentence per line."""


@dataclass(frozen=True)
class Fault:
    """One fault of the file."""

    line: int
    sentence: str


class _Loader(yaml.SafeLoader):
    """YAML 1.2: `18:00` is a string, not a number of seconds, and `no` is a string, not a boolean."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own way of saying it)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$", re.IGNORECASE), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^(?:~|null|)$", re.IGNORECASE), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d+$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+\.\d+$"), list("-+0123456789"))


def read_campaign_file(path: Path) -> CampaignFile:
    """Read a file. Raises CampaignFileError with all faults."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise CampaignFileError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CampaignFileError(f"{path} cannot be read: {error}. Save it as UTF-8.") from None
    return parse_campaign_file(text, path.name)


def parse_campaign_file(text: str, name: str = "campaign.yaml") -> CampaignFile:
    """Read a text. Raises CampaignFileError."""
    try:
        root = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise CampaignFileError(f"{name}, line {line}: this is not YAML: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise CampaignFileError(f"{name}: this is not YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(root, yaml.MappingNode):
        raise CampaignFileError(f"{name}: it must have workspace, inboxes and campaigns at its left margin.")
    lines: dict[FieldPath, int] = {}
    faults = list(_doubles(root, (), lines))
    data = _Loader("").construct_document(root)
    faults += _faults(data, lines)
    if faults:
        ordered = sorted(faults, key=lambda fault: fault.line)
        raise CampaignFileError("\n".join(f"{name}, line {fault.line}: {fault.sentence}" for fault in ordered))
    return CampaignFile.model_validate(data)


def _doubles(node: yaml.Node, path: FieldPath, lines: dict[FieldPath, int]) -> Iterator[Fault]:
    """Note the line of every node; yield duplicate keys, of which YAML silently takes the last."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            line = key.start_mark.line + 1
            if here in lines:
                yield Fault(line, f"{shown_path(here)} is given twice (first in line {lines[here]}); keep one.")
                continue
            lines[here] = line
            yield from _doubles(value, here, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _doubles(item, (*path, index), lines)


def _faults(data: Any, lines: Mapping[FieldPath, int]) -> list[Fault]:
    try:
        file = CampaignFile.model_validate(data)
    except ValidationError as error:
        return [_fault(dict(each), lines) for each in _plain_errors(error)]
    return [Fault(_line(path, lines), sentence) for path, sentence in _cross_faults(file)]


def _plain_errors(error: ValidationError) -> list[dict[str, Any]]:
    """Return the errors, without those of the other variants of a union type."""
    found: list[dict[str, Any]] = [dict(each) for each in error.errors(include_url=False)]
    kept: dict[FieldPath, dict[str, Any]] = {}
    for each in found:
        location: FieldPath = each["loc"]
        path = tuple(part for part in location if part not in _UNION_PARTS)
        kept.setdefault(path, {**each, "loc": path, "type": "review" if path[-1:] == ("review",) else each["type"]})
    return [each for path, each in kept.items() if not any(path == other[:-1] for other in kept)]


_UNION_PARTS = frozenset({"literal['none','all']", "Review"})
"""The names that pydantic adds to a path for each variant of a union type."""


def _fault(error: Mapping[str, Any], lines: Mapping[FieldPath, int]) -> Fault:
    path, kind, context = error["loc"], error["type"], error.get("ctx") or {}
    line, name, value = _line(path, lines), shown_path(path), error.get("input")
    if kind == "missing":
        return Fault(line, f"{name} is missing; write it{_example(path)}.")
    if kind == "extra_forbidden":
        known = _fields(path[:-1])
        near = get_close_matches(str(path[-1]), known, n=1)
        right = f"did you mean {near[0]}?" if near else f"the settings here are {', '.join(known)}."
        return Fault(line, f"{name} is not a setting; {right}")
    if kind == "value_error":
        reason = str(context["error"])
        said = f"{name} {reason}" if isinstance(value, Mapping) else f"{name} is {_shown(value)}, {reason}"
        return Fault(line, said if said.endswith("?") else f"{said}.")
    wanted = _wanted(kind, context)
    example = "" if "such as" in wanted or kind == "review" else _example(path)
    return Fault(line, f"{name} is {_shown(value)}, but must be {wanted}{example}.")


_WANTED = {
    "review": "none, all, or a number of texts as first_n: 10",
    "literal_error": "{expected}",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "string_too_short": "a text that is not empty",
    "string_too_long": "a text of at most {max_length} characters",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list, each entry on a line of its own after a dash",
    "too_short": "a list with at least one entry",
    "model_type": "settings on lines of their own below it",
    "model_attributes_type": "settings on lines of their own below it",
}


def _wanted(kind: str, context: Mapping[str, Any]) -> str:
    if kind.startswith("time"):
        return 'a time of day such as "09:00"'
    if kind.startswith("date"):
        return "a day such as 2026-12-25"
    return _WANTED[kind].format(**context)


def _line(path: FieldPath, lines: Mapping[FieldPath, int]) -> int:
    """Return the line of a field, or of the object in which it is missing."""
    while path not in lines:
        path = path[:-1]
    return lines[path]


def shown_path(path: FieldPath) -> str:
    """Format a field's path, such as campaigns[2].window.from, counted from 1."""
    text = ""
    for part in path:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "the file"


def _shown(value: object) -> str:
    if value is None:
        return "empty"
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"


def _model_at(path: FieldPath) -> type[BaseModel] | None:
    model: type[BaseModel] | None = CampaignFile
    for part in path:
        if isinstance(part, int):
            continue
        model = next((_inner(f.annotation) for n, f in _named(model) if n == part), None) if model else None
    return model


def _named(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    return ((field.alias or name, field) for name, field in model.model_fields.items())


def _inner(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_inner(each) for each in getattr(annotation, "__args__", ()))
    return next((each for each in inner if each is not None), None)


def _fields(path: FieldPath) -> Sequence[str]:
    model = _model_at(path)
    return [name for name, _ in _named(model)] if model else []


def _example(path: FieldPath) -> str:
    model = _model_at(path[:-1])
    field = next((field for name, field in _named(model) if name == path[-1]), None) if model else None
    return f", such as {field.examples[0]}" if field is not None and field.examples else ""


def _cross_faults(file: CampaignFile) -> Iterator[tuple[FieldPath, str]]:
    """Find faults that need the whole file: duplicate names, and inboxes that do not exist."""
    yield from _repeated("inboxes", [inbox.name for inbox in file.inboxes])
    yield from _repeated("campaigns", [campaign.name for campaign in file.campaigns])
    providers = {inbox.name: inbox.provider for inbox in file.inboxes}
    known = ", ".join(providers)
    for number, campaign in enumerate(file.campaigns):
        for place, name in [("inbox", campaign.inbox), *(("fallback_inboxes", n) for n in campaign.fallback_inboxes)]:
            path = ("campaigns", number, place)
            if name not in providers:
                yield path, f"{shown_path(path)} is {name!r}, which is not an inbox of this file: {known}."
            elif (providers[name] == "smtp") != (providers.get(campaign.inbox, providers[name]) == "smtp"):
                yield path, f"{shown_path(path)} is {name!r}, but e-mail and WhatsApp cannot replace each other."
        if campaign.inbox in campaign.fallback_inboxes:
            path = ("campaigns", number, "fallback_inboxes")
            yield path, f"{shown_path(path)} is {campaign.inbox!r}, the campaign's own inbox; write another one."
        if campaign.template is not None and providers.get(campaign.inbox) != "cloud_api":
            path = ("campaigns", number, "template")
            yield (
                path,
                f"{shown_path(path)} is only for an inbox of provider cloud_api, which {campaign.inbox!r} is not.",
            )


def _repeated(section: str, names: Sequence[str]) -> Iterator[tuple[FieldPath, str]]:
    for number, name in enumerate(names):
        if name in names[:number]:
            path = (section, number, "name")
            yield path, f"{shown_path(path)} is {name!r}, which another one has too; give each its own name."
