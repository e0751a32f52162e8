"""What the model is asked, and which of its answers may be sent."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

from campaign_pipeline.core import texts
from campaign_pipeline.core.context import LeadContext

MIN_CHARS: Final = 10

TextCode: TypeAlias = Literal["empty", "too_short", "placeholder", "too_long", "malformed"]

_LINE_ENDS: Final = re.compile("\r\n|[\r\u2028\u2029\x85]")
_UNSENDABLE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff]")
_QUOTES: Final = {
    '"': '"',
    "'": "'",
    "`": "`",
    "“": "”",
    "‘": "’",
    "«": "»",
    "‹": "›",
    "„": "“”",
}
_FENCE: Final = re.compile(
    r"(?P<fence>```|~~~)(?:(?:text|txt|plain|plaintext|plain text|markdown|md|html|json|whatsapp|mensagem|message|pt|"
    r"pt-br)?[ \t]*\n)?(?P<inner>.*)(?P=fence)",
    re.DOTALL | re.IGNORECASE,
)

_URL: Final = re.compile(r"(?:https?://|www\.|\b[\w-]+(?:\.[\w-]+)+/)[^\s<>{}]+", re.IGNORECASE)
_MARKDOWN_LINK: Final = re.compile(
    r"\[[^\[\]\n]{0,200}\](?:\((?:https?:|mailto:|tel:|www\.|/|#|[^\s()]{0,100}\.)[^\s()]{0,2000}\)|\[\w{0,40}\])",
    re.IGNORECASE,
)
_NAME: Final = r"[^\W\d_][\w .,'ºª/|:()-]{0,58}"
_PLACEHOLDERS: Final = (
    re.compile(r"\{\{[^{}\n]{1,80}\}\}"),
    re.compile(rf"\{{\s?{_NAME}\s?\}}"),
    re.compile(rf"\[\s?{_NAME}[\w)]\.?\s?\]"),
    re.compile(r"<[^\W\d_][\w '-]{0,58}\w>"),
    re.compile(r"(?<![\w%])%[^\W\d_]\w{1,40}%(?!\w)"),
)
# What stands in such brackets and is no field: editor's marks, kinds of attachment, HTML that a model slipped in.
_HARMLESS: Final = frozenset(
    {"sic", "ok", "pdf", "vídeo", "video", "áudio", "audio", "foto", "imagem", "gif", "spoiler"}
    | {"br", "hr", "em", "strong", "del", "ins", "ul", "ol", "li", "div", "span", "code", "pre", "h1", "h2", "h3"}
)


LONGEST_VARIABLE: Final = 1024
"""Characters that a variable in the body of a template may have."""

LONGEST_SUBJECT: Final = 120
"""Characters of a subject that are kept: mail programs show about sixty of them."""

_SUBJECT_LINE: Final = re.compile(
    r"\W*(?:assunto|subject)\s*[*_]*\s*:[*_ ]*(?P<subject>[^\n]+)\n+"
    r"(?:\W*(?:corpo|body|mensagem)\s*[*_]*\s*:[*_]*\s*)?(?P<body>.+)",
    re.IGNORECASE | re.DOTALL,
)
_TURNING: Final = frozenset(
    "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
)  # turn the reading direction
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
"""What a model is asked to answer when it writes an e-mail."""


class TextProblem(ValueError):
    """A generated text must not be sent; the text is one sentence for the operator."""

    def __init__(self, code: TextCode, reason: str) -> None:
        super().__init__(reason)
        self.code: TextCode = code

    def __reduce__(self) -> "tuple[type[TextProblem], tuple[TextCode, str]]":
        return type(self), (self.code, str(self))


def check_text(raw: str, max_chars: int) -> str:
    """Take the message out of a model's answer.

    White space, surrounding quotes, code fences and control characters go; line breaks stay. Raises TextProblem when
    nothing is left (`empty`), under 10 characters are (`too_short`), a field is still to be filled in (`placeholder`)
    or more than `max_chars` are left (`too_long`).
    """
    text = _unwrapped(_UNSENDABLE.sub("", _LINE_ENDS.sub("\n", raw).replace("\t", " ")))
    if not any(unicodedata.category(char)[0] in "LNPS" for char in text):
        raise TextProblem("empty", "The model answered with no text.")
    if len(text) < MIN_CHARS:
        raise TextProblem("too_short", f"The model's text has {len(text)} characters; at least {MIN_CHARS} are needed.")
    if placeholder := _placeholder(text):
        raise TextProblem("placeholder", f"The model's text has a field that was not filled in: {placeholder[:60]}")
    if len(text) > max_chars:
        raise TextProblem("too_long", f"The model's text has {len(text)} characters; at most {max_chars} are allowed.")
    return text


def first_contact_prompt(instructions: str, context: LeadContext) -> tuple[str, str]:
    """Write the system and the user prompt for a first message to a lead.

    The campaign's instructions come first, our rules after them: what is said last about data and form holds.
    """
    system = f"{_prompt_text(instructions)}\n\n{texts.SYSTEM_RULES}".strip()
    data = context.render() or texts.NO_DATA
    return system, f"{texts.FIRST_CONTACT_REQUEST}\n\n{texts.DATA_OPEN}\n{data}\n{texts.DATA_CLOSE}"


def email_prompt(instructions: str, context: LeadContext) -> tuple[str, str]:
    """Write the system and the user prompt for a first e-mail to a lead, asked for as JSON `{"subject", "body"}`."""
    system = f"{_prompt_text(instructions)}\n\n{texts.EMAIL_RULES}".strip()
    data = context.render() or texts.NO_DATA
    return system, f"{texts.EMAIL_REQUEST}\n\n{texts.DATA_OPEN}\n{data}\n{texts.DATA_CLOSE}"


def parse_email(raw: str) -> tuple[str | None, str]:
    """Take subject and body out of a model's answer; no subject where it gave none.

    A model that ignores the schema may answer with fences around the JSON, with prose before it, with a line
    `Assunto: …` over the text, or with the text alone. Raises TextProblem (`malformed`) for JSON that cannot be read
    or has no body: it must never reach a lead as it is.
    """
    text = _unwrapped(_LINE_ENDS.sub("\n", raw))
    start, end = text.find("{"), text.rfind("}")
    if '"body"' in text or '"subject"' in text:
        try:
            answer = json.loads(text[start : end + 1], strict=False) if 0 <= start < end else None
        except (ValueError, RecursionError):
            answer = None
        subject, body = (answer.get("subject"), answer.get("body")) if isinstance(answer, dict) else (None, None)
        if not isinstance(body, str):
            raise TextProblem("malformed", "The model answered with JSON that has no readable subject and body.")
        return (subject if isinstance(subject, str) else None), body
    if lines := _SUBJECT_LINE.fullmatch(text):
        return lines["subject"], lines["body"]
    return None, text


def check_subject(raw: str | None, body: str) -> str:
    """One line that may stand as a subject: the model's, else the first sentence of the text.

    Raises TextProblem (`placeholder`) where a field is still to be filled in.
    """
    for candidate in (raw or "", _SENTENCE_END.split(body.strip(), maxsplit=1)[0]):
        line = _unwrapped(" ".join(_one_line(candidate).split()))
        if placeholder := _placeholder(line):
            reason = f"The model's subject has a field that was not filled in: {placeholder[:60]}"
            raise TextProblem("placeholder", reason)
        if any(unicodedata.category(char)[0] in "LN" for char in line):
            return _shortened(line)
    raise TextProblem("empty", "The model's e-mail has neither a subject nor a text.")


def template_prompt(
    instructions: str, context: LeadContext, variables: Sequence[str], body: str | None
) -> tuple[str, str]:
    """Write the system and the user prompt for the variables of a template; `variables` says what each is for."""
    keys = [texts.VARIABLE_KEY.format(number=number) for number in range(1, len(variables) + 1)]
    rules = texts.TEMPLATE_RULES.format(keys=", ".join(f'"{key}"' for key in keys))
    purposes = [
        texts.TEMPLATE_VARIABLE.format(key=key, purpose=_prompt_text(purpose))
        for key, purpose in zip(keys, variables, strict=True)
    ]
    about = [texts.TEMPLATE_BODY.format(body=_prompt_text(body))] if body else []
    system = "\n\n".join([_prompt_text(instructions), *about, "\n".join(purposes), rules]).strip()
    data = context.render() or texts.NO_DATA
    return system, f"{texts.TEMPLATE_REQUEST}\n\n{texts.DATA_OPEN}\n{data}\n{texts.DATA_CLOSE}"


def template_schema(variables: Sequence[str]) -> Mapping[str, Any]:
    """What a model is asked to answer when it writes the variables of a template: one key each, so none can lack."""
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


def parse_variables(raw: str, count: int) -> tuple[str, ...]:
    """Take the variables of a template out of a model's answer, each as Meta takes it: one line, 1,024 characters.

    Raises TextProblem where one lacks (`malformed`), is empty (`empty`) or has a field to be filled in (`placeholder`).
    """
    text = _unwrapped(_LINE_ENDS.sub("\n", raw))
    start, end = text.find("{"), text.rfind("}")
    try:
        answer = json.loads(text[start : end + 1], strict=False) if 0 <= start < end else None
    except (ValueError, RecursionError):
        answer = None
    keys = [texts.VARIABLE_KEY.format(number=number) for number in range(1, count + 1)]
    values = [answer.get(key) if isinstance(answer, dict) else None for key in keys]
    return tuple(_variable(value, number) for number, value in enumerate(values, start=1))


def _variable(value: object, number: int) -> str:
    if not isinstance(value, str):
        raise TextProblem("malformed", f"The model's answer has no variable {number} of the template.")
    line = _unwrapped(" ".join(_one_line(value).split()))
    if not any(unicodedata.category(char)[0] in "LNPS" for char in line):
        raise TextProblem("empty", f"The model left variable {number} of the template empty.")
    if placeholder := _placeholder(line):
        reason = f"Variable {number} of the template has a field that was not filled in: {placeholder[:60]}"
        raise TextProblem("placeholder", reason)
    if len(line) <= LONGEST_VARIABLE:
        return line
    cut = line[: LONGEST_VARIABLE - 1].rstrip()
    return f"{cut.rsplit(' ', 1)[0].rstrip(' ,;:-') or cut}…"


def split_prompt(text: str, max_parts: int) -> tuple[str, str]:
    """Write the system and the user prompt that ask for a text's parts as JSON `{"parts": [...]}`."""
    mark = texts.SPLIT_MARK
    number = 1
    squeezed = "".join(text.casefold().split())
    while f"{mark}>" in squeezed:  # the text must reach the model unchanged, so the mark gives way
        number += 1
        mark = f"{texts.SPLIT_MARK}_{number}"
    request = texts.SPLIT_REQUEST.format(max_parts=max_parts)
    return texts.SPLIT_SYSTEM.format(max_parts=max_parts), f"{request}\n\n<{mark}>\n{text}\n</{mark}>"


def _one_line(text: str) -> str:
    """Without anything that ends a line, steers a terminal or turns the reading direction."""
    return "".join(
        " " if unicodedata.category(char) in {"Cc", "Zl", "Zp"} else char
        for char in text
        if unicodedata.category(char) not in {"Cs", "Co", "Cn"} and char not in _TURNING
    )


def _shortened(line: str) -> str:
    """At most LONGEST_SUBJECT characters, cut between words."""
    if len(line) <= LONGEST_SUBJECT:
        return line
    return f"{line[: LONGEST_SUBJECT - 1].rsplit(' ', 1)[0].rstrip(' ,;:-')}…"


def _prompt_text(text: str) -> str:
    return _UNSENDABLE.sub("", _LINE_ENDS.sub("\n", text)).strip()


def _unwrapped(text: str) -> str:
    """Strip quotes and fences around the whole text until nothing changes."""
    while True:
        stripped = text.strip()
        fenced = _FENCE.fullmatch(stripped)
        if fenced and fenced["fence"] not in fenced["inner"]:
            stripped = fenced["inner"].strip()
        elif _is_quoted(stripped):
            stripped = stripped[1:-1].strip()
        if stripped == text:
            return text
        text = stripped


def _is_quoted(text: str) -> bool:
    """Tell whether the first and the last character are one pair of quotes, not the ends of two quotations."""
    if len(text) < 2 or text[-1] not in _QUOTES.get(text[0], ""):
        return False
    opening, closing, inner = text[0], text[-1], text[1:-1]
    if opening != closing:
        depth = 1
        for index, char in enumerate(inner):
            if char == closing and not _is_apostrophe(inner, index):
                depth -= 1
            elif char == opening:
                depth += 1
            if depth == 0:
                return False
        return True
    for index, char in enumerate(inner):
        if char == opening and not _is_apostrophe(inner, index):
            # The first quote inside decides: it opens a quotation within, or closes one that began the text.
            return index == 0 or inner[index - 1].isspace() or inner[index - 1] in "(["
    return True


def _is_apostrophe(text: str, index: int) -> bool:
    return 0 < index < len(text) - 1 and text[index - 1].isalnum() and text[index + 1].isalnum()


def _placeholder(text: str) -> str | None:
    """Find a field that was not filled in; links and addresses are looked at only for double braces."""
    if double := _PLACEHOLDERS[0].search(text):
        return double[0]
    plain = _URL.sub(" ", _MARKDOWN_LINK.sub(" ", text))
    for pattern in _PLACEHOLDERS[1:]:
        for found in pattern.finditer(plain):
            if found[0][1:-1].strip().casefold() not in _HARMLESS:
                return found[0]
    return None
