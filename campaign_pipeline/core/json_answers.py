"""Reads JSON from a model's answer, however it is quoted or escaped, and finds the message in it."""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from campaign_pipeline.core.reasoning_cuts import GREETING
from campaign_pipeline.core.text_rules import TextProblem, fold

_LOOKS_LIKE_JSON: Final = re.compile(r"\s*(?:\{\s*\\?[\"'“‘]|\[\s*(?:\\?[\"“{]|'[^'\n]{0,200}'\s*[,\]]))")
_OBJECT_INSIDE: Final = re.compile(r"\{\s{0,20}\\?[\"'“][\w -]{1,40}\\?[\"'”]\s{0,5}:")
_TRAILING_COMMA: Final = re.compile(r",(\s{0,50}[}\]])")
_NOT_A_LETTER: Final = re.compile(r"[^a-z0-9]+")
_DEEPEST: Final = 40  # levels of nesting: more than any answer has, far fewer than break a parser
_LONGEST_LITERAL: Final = 20_000

_BODY_KEYS: Final = (
    "mensagem", "message", "mensaje", "texto", "text", "body", "corpo", "cuerpo", "conteudo", "content", "contenido",
    "resposta", "response", "respuesta", "answer", "output", "resultado", "result", "reply", "html", "msg", "whatsapp",
    "mensagemfinal", "finalmessage", "textofinal", "corpodoemail", "emailbody", "bodytext", "mensagemwhatsapp",
    "whatsappmessage", "firstmessage", "primeiramensagem", "mensagemdeprimeirocontato", "generatedmessage",
    "textcontent",
)  # fmt: skip
_SUBJECT_KEYS: Final = (
    "subject", "assunto", "asunto", "titulo", "title", "subjectline", "linhadeassunto", "assuntodoemail",
    "emailsubject",
)  # fmt: skip
_LIST_KEYS: Final = (
    "messages",
    "mensagens",
    "mensajes",
    "parts",
    "partes",
    "paragrafos",
    "paragraphs",
    "textos",
    "texts",
)
_PIECE_KEYS: Final = frozenset(
    (
        "saudacao", "cumprimento", "greeting", "saludo", "abertura", "introducao", "intro", "opening", "gancho", "hook",
        "fechamento", "encerramento", "closing", "despedida", "cta", "chamadaparaacao", "calltoaction", "pergunta",
        "question", "assinatura", "signature",
    )
)  # fmt: skip
_WRAPPERS: Final = ("email", "data", "dados", "resultado", "result", "response", "resposta", "output", "answer", "json")


def looks_like_json(text: str) -> bool:
    """Return whether a text is JSON, or was meant to be: it must not reach a reader as it is."""
    return _LOOKS_LIKE_JSON.match(text) is not None


def message_in_json(text: str) -> str:
    """Return the message in a JSON answer; return any other answer unchanged.

    Raises TextProblem `malformed` for JSON that cannot be read or has no message, and `options` if it has several.
    """
    if not looks_like_json(text):
        inside = _OBJECT_INSIDE.search(text) if "{" in text else None
        if inside is None:
            return text
    value = read_json(text)
    found = _message(value)
    if found is None:
        raise TextProblem("malformed", "The model answered with JSON in which no message can be read.")
    return found


def read_json(text: str) -> Any:
    """Return the first JSON object or list in a text; None if none can be read.

    Accepts single quotes, typographic quotes, extra commas, line breaks in strings and double escaping.
    """
    start = min((at for at in (text.find("{"), text.find("[")) if at >= 0), default=-1)
    if start < 0 or _depth(text) > _DEEPEST:
        return None
    end = max(text.rfind("}"), text.rfind("]"))
    piece = text[start : end + 1]
    for attempt in (piece, _TRAILING_COMMA.sub(r"\1", piece), piece.translate(_TYPOGRAPHIC), _unescaped(piece)):
        if attempt and (value := _loaded(attempt)) is not None:
            return value
    # A list or an object followed by prose that has brackets too.
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(text, start)
        if isinstance(value, dict | list):
            return value
    except (ValueError, RecursionError):
        pass
    return _literal(piece)


_TYPOGRAPHIC: Final = str.maketrans({"“": '"', "”": '"', "„": '"'})


def _depth(text: str) -> int:
    depth = deepest = 0
    for char in text:
        if char in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "}]":
            depth = max(0, depth - 1)
    return deepest


def _loaded(text: str) -> Any:
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def _unescaped(text: str) -> str:
    """Undo one level of escaping."""
    if '\\"' not in text:
        return ""
    try:
        value = json.loads(f'"{text}"', strict=False)
    except ValueError:
        return ""
    return value if isinstance(value, str) else ""


def _literal(text: str) -> Any:
    """Parse an object in Python's notation, with single quotes."""
    if len(text) > _LONGEST_LITERAL or "'" not in text:
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    return value if isinstance(value, dict | list) else None


def key_of(name: object) -> str:
    """Fold case and accents of a key, and drop its word separators."""
    return _NOT_A_LETTER.sub("", fold(str(name)))


def subject_and_body(value: Any, depth: int = 3) -> tuple[str | None, str | None]:
    """Return subject and body of an object under any of the usual keys; None for what is missing."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, Mapping) or not depth:
        return None, None
    keyed = {key_of(name): each for name, each in value.items()}
    subject = next((keyed[key] for key in _SUBJECT_KEYS if isinstance(keyed.get(key), str)), None)
    body = _of_pieces(keyed) or next(
        (text for key in _BODY_KEYS if key in keyed and (text := _joined(keyed[key])) is not None), None
    )
    if body is None:
        for key in (*_WRAPPERS, *_BODY_KEYS):
            if isinstance(keyed.get(key), Mapping):
                inner = subject_and_body(keyed[key], depth - 1)
                if inner[1] is not None:
                    return inner[0] or subject, inner[1]
    if (
        body is not None
        and looks_like_json(body)
        and (inner := subject_and_body(read_json(body), depth - 1))[1] is not None
    ):
        return inner[0] or subject, inner[1]
    return subject, body


def _of_pieces(keyed: Mapping[str, Any]) -> str | None:
    """Join a message whose greeting, body and closing have keys of their own, in their order."""
    texts = {key: text for key, each in keyed.items() if (text := _joined(each))}
    if not _PIECE_KEYS & texts.keys():
        return None
    texts = {key: text for key, text in texts.items() if key in _PIECE_KEYS or key in _BODY_KEYS}
    greeting = next((key for key in _BODY_KEYS if key in texts and GREETING.match(fold(texts[key]))), None)
    if greeting is not None:  # what stands before a body that greets by itself tells how it was made
        keys = list(texts)
        texts = {key: texts[key] for key in keys[keys.index(greeting) :]}
    pieces = list(dict.fromkeys(text.strip() for text in texts.values()))
    return "\n\n".join(piece for piece in pieces if not any(piece in other for other in pieces if other != piece))


def _joined(value: Any) -> str | None:
    """Return a text, or a list of paragraphs joined to one."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return "\n\n".join(value)
    return None


def _message(value: Any, depth: int = 3) -> str | None:
    if isinstance(value, list):
        if all(isinstance(each, str) for each in value):
            return _joined(value)
        return _message(value[0], depth - 1) if len(value) == 1 and depth else None
    if not isinstance(value, Mapping) or not depth:
        return None
    keyed = {key_of(name): each for name, each in value.items()}
    if text := _of_pieces(keyed):
        return text
    for key in (*_BODY_KEYS, *_LIST_KEYS):
        if key in keyed and (text := _joined(keyed[key])) is not None:
            return text
    nested = [each for each in keyed.values() if isinstance(each, Mapping | list)]
    if len(nested) == 1:
        return _message(nested[0], depth - 1)
    numbered = [each for key, each in keyed.items() if isinstance(each, str) and key[-1:].isdigit()]
    if len(numbered) > 1:
        raise TextProblem("options", "The model answered with several messages instead of one.")
    texts = [each for each in keyed.values() if isinstance(each, str)]
    return texts[0] if len(texts) == 1 == len(keyed) else None
