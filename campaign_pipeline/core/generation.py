"""Prompts for the model, and the readers of its answers."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from campaign_pipeline.core import texts
from campaign_pipeline.core.context import LeadContext
from campaign_pipeline.core.json_answers import looks_like_json, read_json, subject_and_body
from campaign_pipeline.core.reasoning_cuts import without_reasoning
from campaign_pipeline.core.text_checks import NOTHING_KNOWN, Known, check, is_blank
from campaign_pipeline.core.text_cleaning import Markup, clean, plain_characters, unwrapped
from campaign_pipeline.core.text_rules import ChangeRule, TextProblem

MIN_CHARS: Final = 10

LONGEST_VARIABLE: Final = 1024
"""Characters allowed in a variable in the body of a template."""

LONGEST_SUBJECT: Final = 120
"""Characters of a subject that are kept; mail programs show about sixty."""

_SUBJECT_LINE: Final = re.compile(
    r"\W{0,20}(?:assunto|subject|asunto)\s{0,3}[*_]{0,3}\s{0,3}:[*_ ]{0,4}(?P<subject>[^\n]+)\n+"
    r"(?:\W{0,20}(?:corpo|body|mensagem|cuerpo)\s{0,3}[*_]{0,3}\s{0,3}:[*_]{0,3}\s{0,10})?(?P<body>.+)",
    re.IGNORECASE | re.DOTALL,
)
_TURNING: Final = frozenset(
    "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
)  # change the reading direction
_SUBJECT_KEY: Final = re.compile(r"[\"'“](?:subject|assunto|asunto|body|corpo|cuerpo)\\?[\"'”]\s{0,5}:", re.IGNORECASE)
_SUBJECT_PREFIX: Final = re.compile(r"\A(?:assunto|subject|asunto)\s{0,3}:\s{0,3}", re.IGNORECASE)
_MARKED_EMAIL: Final = re.compile(
    r"<(?:subject|assunto)>(?P<subject>[^<>]{1,500})</(?:subject|assunto)>\s{0,10}"
    r"<(?P<tag>body|corpo)>(?P<body>.{1,50000}?)</(?P=tag)>",
    re.IGNORECASE | re.DOTALL,
)
_SENTENCE_END: Final = re.compile(r"(?<=[.!?…])\s|\n")


EMAIL_SCHEMA: Mapping[str, Any] = {
    "name": "email",
    "strict": True,
    "schema": {
        "type": "object",
        "properties": {"subject": {"type": "string"}, "body": {"type": "string"}},
        "required": ["subject", "body"],
        "additionalProperties": False,
    },
}
"""Schema of the model's answer for an e-mail."""


@dataclass(frozen=True)
class Message:
    """A text that may be sent."""

    text: str
    subject: str | None = None  # if the channel has one
    changed: tuple[ChangeRule, ...] = ()  # the rules that changed the model's answer


def read_message(raw: str, max_chars: int, known: Known = NOTHING_KNOWN, markup: Markup = Markup.WHATSAPP) -> Message:
    """Read the message from a model's answer, in the markup of its channel.

    `max_chars` is the limit for all parts together. Raises TextProblem with the rule that the answer breaks; see
    `text_rules`.
    """
    text, changed = clean(raw, markup)
    if is_blank(text):
        raise TextProblem("empty", "The model's answer has no text.")
    if len(text) < MIN_CHARS:
        raise TextProblem("too_short", f"The model's text has {len(text)} characters; at least {MIN_CHARS} are needed.")
    check(text, known)
    if len(text) > max_chars:
        raise TextProblem("too_long", f"The model's text has {len(text)} characters; at most {max_chars} are allowed.")
    return Message(text, changed=changed)


@dataclass(frozen=True)
class Author:
    """The sender on whose behalf a workspace's texts are written."""

    agent_prompt: str = ""  # the agent's own system prompt (ai_agents.system_prompt)
    workspace: str = ""  # the workspace's name


def _system(instructions: str, author: Author, *rules: str) -> str:
    """Return the system prompt. All leads of a campaign share it, so that providers can cache it.

    Rules come last, because models follow the last instruction on data and form.
    """
    task = _prompt_text(instructions)
    in_name_of = texts.IN_NAME_OF.format(workspace=_prompt_text(author.workspace)) if author.workspace.strip() else ""
    blocks = (_prompt_text(author.agent_prompt), in_name_of, task or texts.DEFAULT_INSTRUCTIONS, *rules)
    return "\n\n".join(block for block in blocks if block)


def _with_data(request: str, context: LeadContext) -> str:
    return f"{request}\n\n{texts.DATA_OPEN}\n{context.render() or texts.NO_DATA}\n{texts.DATA_CLOSE}"


def first_contact_prompt(
    instructions: str,
    context: LeadContext,
    author: Author = Author(),
) -> tuple[str, str]:
    """Write the system and the user prompt for a first message to a lead.

    Without instructions of the campaign, the model writes as a seller would.
    """
    return _system(instructions, author, texts.SYSTEM_RULES), _with_data(texts.FIRST_CONTACT_REQUEST, context)


def email_prompt(
    instructions: str,
    context: LeadContext,
    author: Author = Author(),
) -> tuple[str, str]:
    """Write the system and the user prompt for a first e-mail, whose answer is JSON `{"subject", "body"}`."""
    return _system(instructions, author, texts.EMAIL_RULES), _with_data(texts.EMAIL_REQUEST, context)


def read_email(raw: str, max_chars: int, known: Known = NOTHING_KNOWN) -> Message:
    """Read subject and body of an e-mail, as plain text, from a model's answer. Raises TextProblem."""
    subject, body = parse_email(raw)
    message = read_message(body, max_chars, known, Markup.PLAIN)
    return Message(message.text, check_subject(subject, message.text, known), message.changed)


def parse_email(raw: str) -> tuple[str | None, str]:
    """Split a model's answer into subject and body; the subject is None if the answer has none.

    A model that ignores the schema may use other keys or quotes, put fences around the JSON or prose before it, write a
    line `Assunto: …` above the text, or answer with the text alone. Raises TextProblem (`malformed`) for JSON that
    cannot be read or has no body: raw JSON must never reach a lead.
    """
    text = unwrapped(without_reasoning(plain_characters(raw)).strip())
    if looks_like_json(text) or _SUBJECT_KEY.search(text):
        subject, body = subject_and_body(read_json(text))
        if body is None:
            raise TextProblem("malformed", "The model answered with JSON that has no readable subject and body.")
        return subject, body
    if marked := _MARKED_EMAIL.search(text):
        return marked["subject"], marked["body"]
    if lines := _SUBJECT_LINE.fullmatch(text):
        return lines["subject"], lines["body"]
    return None, text


def check_subject(raw: str | None, body: str, known: Known = NOTHING_KNOWN) -> str:
    """Return a one-line subject: the model's, else the first sentence of the text.

    Raises TextProblem, as `read_message` does.
    """
    for candidate in (raw or "", _SENTENCE_END.split(body.strip(), maxsplit=1)[0]):
        line = _line(candidate)
        check(line, known)
        if any(unicodedata.category(char)[0] in "LN" for char in line):
            return _shortened(line)
    raise TextProblem("empty", "The model's e-mail has neither a subject nor a text.")


def _line(raw: str) -> str:
    """Return a text as one line without markup."""
    line = " ".join(_one_line(raw).split())
    cleaned, _ = clean(line, Markup.PLAIN)
    return " ".join(_SUBJECT_PREFIX.sub("", cleaned).split())


def template_prompt(
    instructions: str,
    context: LeadContext,
    variables: Sequence[str],
    body: str | None,
    author: Author = Author(),
) -> tuple[str, str]:
    """Write the system and the user prompt for a template's variables; `variables` gives the purpose of each."""
    keys = [texts.VARIABLE_KEY.format(number=number) for number in range(1, len(variables) + 1)]
    rules = texts.TEMPLATE_RULES.format(keys=", ".join(f'"{key}"' for key in keys))
    purposes = [
        texts.TEMPLATE_VARIABLE.format(key=key, purpose=_prompt_text(purpose))
        for key, purpose in zip(keys, variables, strict=True)
    ]
    about = texts.TEMPLATE_BODY.format(body=_prompt_text(body)) if body else ""
    system = _system(instructions, author, about, "\n".join(purposes), rules)
    return system, _with_data(texts.TEMPLATE_REQUEST, context)


def template_schema(variables: Sequence[str]) -> Mapping[str, Any]:
    """Return the JSON schema for a template's variables: one key each, so that none can be missing."""
    keys = [texts.VARIABLE_KEY.format(number=number) for number in range(1, len(variables) + 1)]
    return {
        "name": "template_variables",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                key: {"type": "string", "description": purpose} for key, purpose in zip(keys, variables, strict=True)
            },
            "required": keys,
            "additionalProperties": False,
        },
    }


def parse_variables(raw: str, count: int, known: Known = NOTHING_KNOWN) -> tuple[str, ...]:
    """Read a template's variables from a model's answer, within Meta's limits: one line, 1,024 characters each.

    Raises TextProblem: `malformed` if one is missing, `empty` if one has no text, or the rule that one breaks.
    """
    answer = read_json(unwrapped(without_reasoning(plain_characters(raw)).strip()))
    keys = [texts.VARIABLE_KEY.format(number=number) for number in range(1, count + 1)]
    values = [answer.get(key) if isinstance(answer, dict) else None for key in keys]
    return tuple(_variable(value, number, known) for number, value in enumerate(values, start=1))


def _variable(value: object, number: int, known: Known) -> str:
    if not isinstance(value, str):
        raise TextProblem("malformed", f"The model's answer has no variable {number} of the template.")
    line = _line(unwrapped(" ".join(_one_line(value).split())))
    if is_blank(line):  # looked at last: a value may consist of markup only
        raise TextProblem("empty", f"The model left variable {number} of the template empty.")
    check(line, known)
    if len(line) <= LONGEST_VARIABLE:
        return line
    cut = line[: LONGEST_VARIABLE - 1].rstrip()
    return f"{cut.rsplit(' ', 1)[0].rstrip(' ,;:-') or cut}…"


def split_prompt(text: str, max_parts: int) -> tuple[str, str]:
    """Write the system and the user prompt that ask for a text's parts as JSON `{"parts": [...]}`."""
    mark = texts.SPLIT_MARK
    number = 1
    squeezed = "".join(text.casefold().split())
    while f"{mark}>" in squeezed:  # the text must reach the model unchanged, so the delimiter changes
        number += 1
        mark = f"{texts.SPLIT_MARK}_{number}"
    request = texts.SPLIT_REQUEST.format(max_parts=max_parts)
    return texts.SPLIT_SYSTEM.format(max_parts=max_parts), f"{request}\n\n<{mark}>\n{text}\n</{mark}>"


def _one_line(text: str) -> str:
    """Remove line ends, terminal controls and characters that change the reading direction."""
    return "".join(
        " " if unicodedata.category(char) in {"Cc", "Zl", "Zp"} else char
        for char in text
        if unicodedata.category(char) not in {"Cs", "Co", "Cn"} and char not in _TURNING
    )


def _shortened(line: str) -> str:
    """Cut to LONGEST_SUBJECT characters, between words."""
    if len(line) <= LONGEST_SUBJECT:
        return line
    return f"{line[: LONGEST_SUBJECT - 1].rsplit(' ', 1)[0].rstrip(' ,;:-')}…"


def _prompt_text(text: str) -> str:
    return plain_characters(text).strip()
