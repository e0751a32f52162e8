"""What the model is asked, and which of its answers may be sent."""

import re
import unicodedata
from typing import Final, Literal, TypeAlias

from campaign_pipeline.core import texts
from campaign_pipeline.core.context import LeadContext

MIN_CHARS: Final = 10

TextCode: TypeAlias = Literal["empty", "too_short", "placeholder", "too_long"]

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
