"""Reduces a model's answer to the message, in the markup of its channel.

Removes or converts wrapping, JSON, HTML, remarks to the operator, and Markdown. Each step that changes something
reports the name of its rule. Cleaning a clean text changes nothing. Every pattern is linear in the text, or looks at a
bounded number of characters per position.
"""

import html
import re
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from campaign_pipeline.core.json_answers import looks_like_json, message_in_json
from campaign_pipeline.core.reasoning_cuts import GREETING, without_reasoning
from campaign_pipeline.core.text_rules import LONGEST_ANSWER, ChangeRule, TextProblem, fold, has_any

_LINE_ENDS: Final = re.compile("\r\n|[\r\u2028\u2029\x85]")
_UNSENDABLE: Final = re.compile(
    "\ue200[^\ue201\n]{0,200}\ue201"  # a source reference in ChatGPT's own interface
    "|[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ue000-\uf8ff\ufeff]"
    "|[\u202a-\u202e\u2066-\u2069]"  # change the reading direction
    "|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0000-\U000e007f]+"  # hidden letters, except in regional flags
)
# What may stand behind a true "Ã", as in "AMANHÃ…", counts only where no capital letter is before it, or one follows.
_BROKEN: Final = re.compile(
    "\ufffd|Ã[\xa1-\xaa\xac-\xba\xbc-\xbf\u0192\u2020\u2021\u2030\u0160\u0152\u017d]"
    "|(?<![A-ZÀ-Þ])Ã[\xa0\xab\xbb\u201a-\u201f\u2022-\u2026]|Ã[\u201a-\u201f\u2022-\u2026](?=[A-ZÀ-Þ])"
    "|â€[\u0098-\u2122]"
)
_BROKEN_HAS: Final = ("\ufffd", "Ã", "â€")
_MANY_BREAKS: Final = re.compile(r"\n{3,}")
_MOST_ROUNDS: Final = 8
_MOST_WRAPPINGS: Final = 10  # pairs of quotes and fences that are removed in one round


class Markup(StrEnum):
    """The markup that a channel renders."""

    WHATSAPP = "whatsapp"  # *bold*, _italic_, ~strike-through~, `code`, lists, quotations
    PLAIN = "plain"  # none: e-mail as plain text, variables of a template


def clean(raw: str, markup: Markup) -> tuple[str, tuple[ChangeRule, ...]]:
    """Extract the message from an answer. Returns it with the rules that changed it, each once.

    Raises TextProblem if the message cannot be told from the rest.
    """
    if len(raw) > LONGEST_ANSWER:
        raise TextProblem("too_long", f"The model's answer has {len(raw)} characters; {LONGEST_ANSWER} are read.")
    _refuse_broken_letters(raw)
    text = plain_characters(raw).replace("\t", " ").strip()
    steps: tuple[tuple[ChangeRule, Callable[[str], str]], ...] = (
        ("reasoning_cut", without_reasoning),
        ("unwrapped", unwrapped),
        ("json_read", message_in_json),
        ("html_converted", lambda each: _without_html(each, markup)),
        ("preamble_cut", _without_preamble),
        ("closing_cut", _without_closing),
        ("markdown_converted", lambda each: _without_markdown(each, markup)),
    )
    changed: dict[ChangeRule, None] = {}
    for _ in range(_MOST_ROUNDS):
        before = text
        for rule, step in steps:
            after = step(text).strip()
            if after != text:
                changed[rule] = None
                text = after
        if text == before:
            _refuse_broken_letters(text)  # letters that other characters separated before
            return text, tuple(changed)
    raise TextProblem("malformed", "The model's answer is wrapped so often that its message cannot be told.")


def _refuse_broken_letters(text: str) -> None:
    if has_any(text, _BROKEN_HAS) and _BROKEN.search(text):
        raise TextProblem("malformed", "The model's answer has letters that were broken by a wrong encoding.")


def plain_characters(text: str) -> str:
    """Return the text with newlines as line ends, without control characters and invalid code points."""
    if text.replace("\n", "").isprintable():
        return text
    return _UNSENDABLE.sub("", _LINE_ENDS.sub("\n", text))


# Wrapping ------------------------------------------------------------------------------------------------------------

_QUOTES: Final = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "‹": "›", "„": "“”"}
_FENCE: Final = re.compile(
    r"(?P<fence>```|~~~)(?:(?:text|txt|plain|plaintext|plain text|markdown|md|html|json|whatsapp|mensagem|message|pt|"
    r"pt-br)?[ \t]*\n)?(?P<inner>.*)(?P=fence)",
    re.DOTALL | re.IGNORECASE,
)
_WRITTEN_BREAK: Final = re.compile(r"\\n(?![a-z])")
_WRITTEN_LETTERS: Final = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")
_FRONT_MATTER: Final = re.compile(r"---[ \t]*\n(?:[\w -]{1,40}:[^\n]{0,200}\n){1,12}---[ \t]*\n")


def unwrapped(text: str) -> str:
    """Strip quotes and fences around the whole text, up to a plausible number."""
    text = text.strip()
    if text.startswith("---") and (found := _FRONT_MATTER.match(text)):
        text = text[found.end() :].strip()
    if "\\u" in text and not looks_like_json(text):
        text = _WRITTEN_LETTERS.sub(_letters, text)
    for _ in range(_MOST_WRAPPINGS):
        stripped = text
        fenced = _FENCE.fullmatch(stripped) if stripped.startswith(("```", "~~~")) else None
        if fenced and fenced["fence"] not in fenced["inner"]:
            stripped = fenced["inner"].strip()
        elif _is_quoted(stripped):
            stripped = stripped[1:-1].strip()
        if "\\n" in stripped and "\n" not in stripped and not looks_like_json(stripped):  # escaped, as in JSON
            stripped = _WRITTEN_BREAK.sub("\n", stripped).replace('\\"', '"').strip()
        if stripped == text:
            break
        text = stripped
    return text


def _letters(written: "re.Match[str]") -> str:
    """Decode letters that are escaped as in JSON, outside of JSON."""
    units = bytes.fromhex(written[0].replace("\\u", ""))
    return plain_characters(units.decode("utf-16-be", errors="ignore"))


def _is_quoted(text: str) -> bool:
    """Return whether the first and the last character are one pair of quotes, not the ends of two quotations."""
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
            # The first quote inside decides: it opens an inner quotation, or closes one that began the text.
            return index == 0 or inner[index - 1].isspace() or inner[index - 1] in "(["
    return True


def _is_apostrophe(text: str, index: int) -> bool:
    return 0 < index < len(text) - 1 and text[index - 1].isalnum() and text[index + 1].isalnum()


# HTML ----------------------------------------------------------------------------------------------------------------

_BOLD, _ITALIC, _STRIKE = "*", "_", "~"
_INLINE: Final = {"b": _BOLD, "strong": _BOLD, "i": _ITALIC, "em": _ITALIC, "s": _STRIKE, "del": _STRIKE}
_INLINE_TAGS: Final = {**_INLINE, "strike": _STRIKE, **{f"h{level}": _BOLD for level in range(1, 7)}}
_BLOCKS: Final = frozenset(
    [
        "p",
        "div",
        "section",
        "article",
        "header",
        "footer",
        "main",
        "blockquote",
        "table",
        "ul",
        "ol",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "body",
        "html",
        "center",
        "pre",
    ]
)
_HIDDEN: Final = frozenset({"script", "style", "head", "title"})
_OTHER_TAGS: Final = [
    "u",
    "ins",
    "br",
    "hr",
    "span",
    "li",
    "thead",
    "tbody",
    "tr",
    "td",
    "th",
    "a",
    "font",
    "small",
    "big",
    "sup",
    "sub",
    "label",
    "mark",
    "code",
    "meta",
    "link",
    "img",
    "button",
]
_TAG_NAMES: Final = "|".join(
    sorted({*_INLINE_TAGS, *_BLOCKS, *_HIDDEN, *_OTHER_TAGS}, key=lambda name: (-len(name), name))
)
_TAG: Final = re.compile(
    rf"<!--[^>]{{0,500}}-->|<!doctype[^<>]{{0,200}}>|"
    rf"<(?P<close>/?)(?P<name>{_TAG_NAMES})(?P<rest>(?:\s[^<>]{{0,1000}})?)/?>",
    re.IGNORECASE,
)
_CDATA: Final = re.compile(r"<!\[CDATA\[(?P<inner>[^\]]{0,20000})\]\]>", re.IGNORECASE)
_XML_PROLOG: Final = re.compile(r"\A\s{0,9}<\?xml[^<>]{0,200}\?>", re.IGNORECASE)
_HREF: Final = re.compile(r"\bhref\s{0,3}=\s{0,3}[\"']?([^\"'\s>]{1,1000})", re.IGNORECASE)
_ENTITY: Final = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")


def _without_html(text: str, markup: Markup) -> str:
    """Convert tags to the channel's markup, and entities to their characters."""
    if "<" in text:
        text = _CDATA.sub(lambda found: found["inner"], _XML_PROLOG.sub("", text))
        text = _without_tags(text, markup)
    if "&" in text:
        text = _ENTITY.sub(lambda found: html.unescape(found[0]).replace("\xa0", " "), text)
        text = plain_characters(text)
    return text


def _without_tags(text: str, markup: Markup) -> str:
    tags = list(_TAG.finditer(text))
    if not tags:
        return text
    pieces: list[str] = []
    opened: list[tuple[str, int, str]] = []  # tag, where its content begins in `pieces`, its link
    position, hidden = 0, ""
    for tag in tags:
        name, closes = (tag["name"] or "").lower(), bool(tag["close"])
        if hidden:  # the content of <script> and similar tags is no text
            if closes and name == hidden:
                hidden, position = "", tag.end()
            continue
        pieces.append(text[position : tag.start()])
        position = tag.end()
        if name in _HIDDEN and not closes:
            hidden = name
        elif name not in _INLINE_TAGS and name != "a":
            pieces.append(_void(name, closes))
        elif closes:
            _close(name, pieces, opened, markup)
        else:
            pieces.append(_block_break(name))
            opened.append((name, len(pieces), _href(tag["rest"])))
    pieces.append("" if hidden else text[position:])
    lines = [line.strip() for line in "".join(pieces).split("\n")]
    return _MANY_BREAKS.sub("\n\n", "\n".join(lines))


def _close(name: str, pieces: list[str], opened: list[tuple[str, int, str]], markup: Markup) -> None:
    """Mark up the text since a tag was opened; inner tags that were never closed leave nothing."""
    if all(name != each for each, _, _ in opened):
        return
    while opened:
        open_name, begin, link = opened.pop()
        if open_name == name:
            pieces[begin:] = [_marked_up(name, "".join(pieces[begin:]), link, markup), _block_break(name)]
            return


def _block_break(name: str) -> str:
    return "\n\n" if name in _BLOCKS else ""


def _void(name: str, closes: bool) -> str:
    """Return what a tag without markup leaves behind."""
    if name in _BLOCKS:
        return "\n\n"
    if name in {"br", "tr"}:
        return "" if closes and name == "br" else "\n"
    if name == "hr":
        return "\n\n"
    if name == "li":
        return "" if closes else "\n- "
    return " " if name in {"td", "th"} and closes else ""


def _marked_up(name: str, content: str, link: str, markup: Markup) -> str:
    if name == "a":
        return _link(content.strip(), link) if link else content
    return _wrapped(content, _INLINE_TAGS[name], markup)


def _wrapped(content: str, mark: str, markup: Markup) -> str:
    """Mark up a passage, with its surrounding spaces outside: "* bold *" would show its asterisks."""
    bare = content.strip()
    if not bare or markup is Markup.PLAIN or "\n" in bare or bare.startswith(mark):
        return content
    before, _, after = content.partition(bare)
    return f"{before}{mark}{bare}{mark}{after}"


def _href(attributes: str) -> str:
    found = _HREF.search(attributes)
    return html.unescape(found[1]) if found else ""


def _link(label: str, target: str) -> str:
    """Return a link for plain text: its label, then its address."""
    shown = re.sub(r"\A(?:mailto|tel):", "", target, flags=re.IGNORECASE)
    bare = shown.split("?")[0] if shown != target else shown
    same = re.sub(r"\A(?:https?://)?(?:www\.)?|/\Z", "", fold(label)) == re.sub(
        r"\A(?:https?://)?(?:www\.)?|/\Z", "", fold(bare)
    )
    if not label or same:
        return bare
    return label if bare.startswith("#") else f"{label}: {bare}"


# Remarks to the operator; patterns match folded text ----------------------------------------------------------------

_MESSAGE: Final = (
    r"(?:mensagem|mensagens|mensaje|message|texto|text|rascunho|draft|answer|primeiro contato|primeira abordagem|"
    r"(?:sugestao|proposta|opcao|modelo) de (?:mensagem|texto)|(?:versao|resposta|version) final)"
)
_OBJECT: Final = (  # words for a message, and words with other meanings too
    rf"(?:{_MESSAGE}|sugestao|sugestoes|suggestion|versao|version|e-?mail|resposta|response|reply|opcao|opcoes|"
    r"abordagem|copy|script)"
)
_ACKNOWLEDGED: Final = (
    r"(?:claro(?: que sim)?|com certeza|certamente|perfeito|entendido|entendi|otimo|beleza|combinado|pode deixar|"
    r"sem problemas?|com (?:todo o? ?)?prazer|vamos la|pronto|feito|bien sur|avec plaisir|naturlich|gerne|certo|"
    r"volentieri|my pleasure|ok(?:ay)?|sure(?: thing)?|of course|certainly|absolutely|got it|great|"
    r"understood|por supuesto|"
    r"desde luego|vale|entiendo)"
)
_ACKNOWLEDGEMENT: Final = re.compile(
    rf"[¡\W]{{0,4}}{_ACKNOWLEDGED}\s?[!.,:]{{1,3}}[ \t]*(?:[^\w\s]{{1,3}}[ \t]*)?(?=\n|\S|\Z)"
)
_INTRODUCED: Final = re.compile(
    r"\b(?:aqui (?:esta|estao|vai|vao|tem|segue|tienes|va)|segue(?:m)?|eis|abaixo|ai (?:vai|esta)|esta e|here(?:'s|"
    r"’s| is| are| you go)|"
    r"below|a continuacion|te dejo|confira|preparei|criei|escrevi|elaborei|redigi|montei|desenvolvi|gerei|sugiro|"
    r"sugestao|i(?:'ve|’ve| have)? (?:written|created|drafted|prepared|wrote|crafted)|he (?:escrito|creado|"
    r"redactado|preparado))\b"
)
_OBJECT_WORD: Final = re.compile(rf"\b{_OBJECT}\b")
_HANDED_OVER: Final = re.compile(  # "Claro! Aqui está a mensagem"
    rf"[¡\W]{{0,4}}(?:{_ACKNOWLEDGED}\s?[!.,]{{0,3}}\s{{0,2}})?(?:aqui (?:esta|vai|tem|segue|tienes|va)|"
    rf"segue(?:m)?(?: abaixo)?|eis|"
    rf"abaixo (?:esta|segue)|ai vai|esta e|here(?:'s|’s| is| are)|below is|a "
    rf"continuacion)\b[^\n]{{0,30}}?\b{_MESSAGE}\b"
)
_LABEL_TAIL: Final = (
    r"(?: (?:de|do|da|para|pra|ao|a|final|pronta|sugerida|inicial|personalizada|unica|no|via|em|e|for|to|of|first|"
    r"contact|"
    r"whatsapp|primeiro|primeira|contato|abordagem|lead|cliente|message|text|outreach|prospeccao|vendas|portugues|"
    r"pt-br|"
    r"personalizado|abaixo)){0,8}"
)
_LABEL_HEAD: Final = r"(?:(?:primeira|primeiro|nova|sua|texto d[ae]|conteudo d[ae]|final|my|the|first) )?"


def _label(word: str) -> re.Pattern[str]:
    """Match a label such as "**Mensagem para WhatsApp:**" or "### Mensagem"."""
    words = f"{_LABEL_HEAD}{word}{_LABEL_TAIL}"
    return re.compile(
        rf"[^\w\n]{{0,10}}{words}[*_ \t]{{0,4}}(?:\([^()\n]{{1,40}}\)[*_ \t]{{0,4}})?:"
        rf"(?:[ \t]*[|>][+-]?[ \t]*(?=\n))?[*_ \t]{{0,4}}"
        rf"|(?:#{{1,6}}[ \t]{{1,3}}|\*{{1,3}}|_{{1,3}}|\[){words}[*_\] \t]{{0,4}}(?=\n)"
        r"|[^\w\n]{0,6}(?:inicio|comeco|start|begin(?:ning)?)(?: da| do| of)?(?: the)? "
        r"(?:mensagem|texto|message|mensaje)[^\w\n]{0,6}(?=\n)"
    )


_SURE_LABEL: Final = _label(_MESSAGE)
_LIKELY_LABEL: Final = _label(_OBJECT)
_SURE_SPEAKER: Final = re.compile(
    r"[*_\[( \t]{0,4}(?:assistente|assistant|chatgpt)[*_\]) \t]{0,4}:[*_ \t]{0,4}(?=\S|\n)"
    r"|(?:assistant|model|assistente)[ \t]{0,3}(?=\n)"
)
_LIKELY_SPEAKER: Final = re.compile(
    r"[*_\[( \t]{0,4}(?:ia|ai|bot|chatbot|modelo|vendedora?|sdr|consultora?|atendente)[*_\]) \t]{0,4}:[*_ \t]{0,4}"
)
_SUBJECT_LABEL: Final = re.compile(r"[*_ \t]{0,4}(?:assunto|subject|asunto)[*_ \t]{0,4}:[^\n]{1,200}\n\s*")
_LONGEST_REMARK: Final = 300
_MOST_REMARKS: Final = 4
_RULE: Final = re.compile(
    r"[ \t]*(?:-[ \t]?){3,60}\Z|[ \t]*(?:\*[ \t]?){3,60}\Z|[ \t]*(?:_[ \t]?){3,60}\Z|[ \t]*[═─━—–=]{3,60}[ \t]*\Z"
)


def _without_preamble(text: str) -> str:
    """Remove "Claro! Aqui está a mensagem:" and labels such as "Mensagem:" before the message."""
    for _ in range(_MOST_REMARKS):
        cut = _preamble_end(text)
        if not cut:
            return text
        rest = text[cut:].lstrip()
        if not rest:
            return text
        text = rest
    return text


def _preamble_end(text: str) -> int:
    """Return where the first remark before the message ends; 0 if there is none."""
    folded = fold(text[:_MOST_HEAD])
    line, _, _ = folded.partition("\n")
    if _RULE.match(line):
        return len(line)
    if GREETING.match(folded):
        if len(line) > _LONGEST_REMARK or not line.rstrip(" *_").endswith(":"):
            return 0
        # "Olá! Claro, aqui está a mensagem:" greets the operator; the message greets its reader.
        introduction = _introduction_end(folded, line)
        is_remark = introduction == len(line) and GREETING.match(folded, _skip_blank(folded, introduction))
        return introduction if is_remark else 0
    introduction = _introduction_end(folded, line) if len(line) <= _LONGEST_REMARK else 0
    for label in (_SURE_LABEL, _SURE_SPEAKER):
        if found := label.match(folded):
            return found.end()
    for label in (_LIKELY_LABEL, _LIKELY_SPEAKER, _SUBJECT_LABEL):  # certain if a greeting follows
        if (found := label.match(folded)) and GREETING.match(folded, _skip_blank(folded, found.end())):
            return found.end()
    if introduction:
        return introduction
    if (found := _ACKNOWLEDGEMENT.match(folded)) and GREETING.match(folded, _skip_blank(folded, found.end())):
        return found.end()
    return _head_end(folded)


_HELLO: Final = re.compile(
    r"[^\w\n]{0,6}(?:ola|oi+|oie|bom dia|boa tarde|boa noite|prezad[oa]s?|car[oa]s?|hola|hello|hi|hey|dear)\b"
)
_ABOUT_THE_TASK: Final = re.compile(
    r"\b(?:o lead|do lead|este lead|the lead|lead data|(?:lead|para|destinatari[oa]|canal|to):|"
    r"usuario|the user|dados do lead|prompt|escrever|redigir|"
    r"elaborar|vou criar|raciocinio|reasoning|thinking|pensando|"
    r"(?:passo|step|etapa) \d)(?!\w)"
    # Without a colon it may be the sender's heading: "Clínica Vida | WhatsApp".
    r"|\b(?:mensagem|message|messaggio|nachricht|mensaje|whatsapp)\b[^\n]{0,80}:[*_ \t]{0,4}\Z"
)
_TO_THE_READER: Final = re.compile(r"\b(?:voces?|te|seus?|suas?|you|your|tu|su|usted)\b")
_FOREIGN_LETTERS: Final = re.compile("[\u0400-\u06ff\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")
_MOST_HEAD: Final = 1_000


def _head_end(folded: str) -> int:
    """Return where thoughts about the task, or words in another script, end before the greeting; 0 without them."""
    at = folded.find("\n")
    while 0 <= at < _MOST_HEAD:
        start = at + 1
        label = _LIKELY_LABEL.match(folded, start)
        begin = _skip_blank(folded, label.end()) if label else start
        if _HELLO.match(folded, begin):
            head = folded[:at].rstrip()
            if _FOREIGN_LETTERS.search(head) or (_ABOUT_THE_TASK.search(head) and not _TO_THE_READER.search(head)):
                return start
            return 0
        at = folded.find("\n", start)
    return 0


def _introduction_end(folded: str, line: str) -> int:
    """Return where "Aqui está a mensagem:" ends: at its colon, or at the end of its line if a greeting follows."""
    introduced = _INTRODUCED.search(line)
    if not introduced:
        return 0
    bare = line.rstrip(" \t*_")
    if bare.endswith(":") and _HANDED_OVER.match(line):
        return len(line)
    colon = line.find(":", introduced.end())
    if colon > 0 and _OBJECT_WORD.search(line, 0, colon) and GREETING.match(line, _skip_blank(line, colon + 1)):
        return colon + 1
    following = _skip_blank(folded, len(line))
    if _OBJECT_WORD.search(line) and following > len(line) and GREETING.match(folded, following):
        return len(line)
    if bare.endswith(":") and following > len(line) and GREETING.match(folded, following):
        return len(line)  # "Claro! Aqui está:"
    return 0


def _skip_blank(text: str, start: int) -> int:
    while start < len(text) and (text[start].isspace() or text[start] in "-*_—–\"“'«`"):
        start += 1
    return start


_EDIT: Final = (
    r"(?:ajust|adapt|modific|alter|reescrev|refac|encurt|resum|mud[eao]|edit|revis|personaliz|tweak|adjust|change|"
    r"rewrite|shorten|modify|revise|refine|customi[sz]e|cambi|acort|reescrib)\w*"
)
_EDITED: Final = (
    r"(?:(?:o|a|os|as|esse|essa|este|esta|um|uma|the|this|el|la|este|esa|algo n[oa]|it|alguma coisa n[oa]|pouco o|"
    r"pouco a) ){0,3}(?:tom|texto|mensagem|mensaje|message|text|tone|tono|versao|version)\b"
    r"(?! (?:d[oae]s?|n[oa]s?|of|on) (?!mensagem|texto|e-?mail|message))"
)
_ANOTHER: Final = (
    r"(?:cri|ger|escrev|redig|elabor|faz|fac|produz|write|create|generate|make|escrib|haga)\w*[^\n]{0,20}?\b"
    r"(?:outr[ao]s?|mais|nov[ao]s?|another|other|more|different|otr[ao]s?|mas|alternativ[ao]s?|diferentes?)"
    r"(?: \w+){0,2} (?:versao|versoes|opcao|opcoes|variac\w+|mensagem|mensagens|texto|versions?|options?|variations?|"
    r"messages?|versiones|opciones|mensajes?)\b"
    r"|(?:outra versao|outras versoes|another version|other versions|different versions?|otra version)\b(?! d)"
    r"|(?:versao|version) (?:mais|more|mas) (?:formal|informal|curta|longa|casual|short|long|direta)\w*\b"
)
_OTHER_TONE: Final = (
    r"(?:para|pra|to) (?:um |outro |a )?(?:tom|tone) (?:mais |more )?(?:in)?(?:formal|profissional|casual|diret|leve)"
)
_EDIT_OFFER: Final = (
    rf"(?:\b{_EDIT} (?:{_EDITED}|{_OTHER_TONE}|(?:algo|it|something|anything)\s*[?!.])|\b(?:{_ANOTHER}))"
)
_OFFER: Final = re.compile(
    r"(?:\b(?:quer|queira|quiser|gostaria|deseja|desejar|prefere|preferir|precisa|precisar|precise|posso|podemos|"
    r"poderia|"
    r"caso|se|me avis[ea]|me diga|fique a vontade para|sinta-se a vontade para|estou a disposicao para|"
    r"would you like|do you want|if you(?:'d|’d)?|let me know|i can|feel free to|happy to|"
    r"quieres|quiere|si|te gustaria|puedo|sientete libre de|avisame)\b[^\n]{0,80}?" + _EDIT_OFFER + r")"
    r"|\b(?:quer|gostaria|deseja|prefere) que eu " + _EDIT + r"\s*[?]"
    r"|\b(?:let me know|me avis[ea]|avisame)\b[^\n]{0,40}\b(?:any|some|algum\w*|alguna?|algo)\b[^\n]{0,20}"
    r"\b(?:changes?|adjustments?|edits?|tweaks?|revisions?|ajustes?|alterac\w+|mudancas?|cambios?)\b"
    r"|\blet me know if you(?:'d|’d| would)? (?:like|want|need)[^\n]{0,20}\b(?:changes?|adjustments?|edits?|tweaks?)\b"
    r"|\b(?:posso|podemos|caso|se)\b[^\n]{0,40}\b(?:fazer|precis\w*|quiser|queira|realizar|desej\w*)\b[^\n]{0,20}"
    r"\b(?:ajustes?|alterac(?:ao|oes)|modificac(?:ao|oes)|mudancas?)\b(?! (?:n[oa]s?|d[oa]s?|em|de|a|ao) (?!texto|"
    r"mensagem|tom\b))"
    r"|\b(?:fique|sinta-se) a vontade para " + _EDIT + r"\b|\bfeel free to " + _EDIT + r"\b"
)
_OFFER_HAS: Final = (  # what is offered: an edit, or another version
    *("ajust", "adapt", "modif", "alter", "reescr", "refac", "encurt", "resum", "mude", "muda", "mudo", "edit"),
    *("revis", "personaliz", "tweak", "adjust", "change", "rewrite", "shorten", "refine", "customi", "cambi", "acort"),
    *("vers", "opc", "option", "varia", "mensa", "messag", "texto"),
)
_GOOD_WISH: Final = re.compile(
    r"\W{0,20}(?:(?:eu )?espero que (?:isso |essa mensagem |esta mensagem |a mensagem |o texto |esse texto |te |"
    r"lhe |isto )?"
    r"(?:ajude|ajudem|goste|gostem|tenha gostado|tenha ajudado|atenda|seja util|sirva|te ajude|funcione|te sirva|"
    r"ayude|te guste)"
    r"(?: (?:para voce|pra voce|a voce|voce|a sua necessidade|as suas necessidades|o que (?:voce )?precisa|na "
    r"prospeccao|na campanha|nas vendas))?"
    r"|(?:i )?hope (?:this|that|it)(?: \w+)? (?:helps?|works|is helpful|is useful)(?: you)?"
    r"|boa sorte(?: com (?:a|sua|essa) (?:campanha|prospeccao|abordagem|venda))?|good luck(?: with \w+(?: \w+)?)?"
    r"|(?:fim|final|end)(?: da| de| do| of)?(?: the)? (?:mensagem|texto|message|mensaje)"
    r"|(?:posso|podemos) (?:te |lhe )?ajudar (?:em|com) mais alguma coisa|precisa de mais alguma coisa"
    r"|(?:is there )?anything else(?: you need| i can help(?: you)? with)?)\W{0,20}"
)
_FEEDBACK: Final = re.compile(
    r"\W{0,20}(?:gostou|ficou (?:bom|boa|como)(?: \w+){0,3}|o que (?:voce )?ach(?:ou|a)(?: dela| disso)?|esta "
    r"(?:adequad[oa]|bom|boa|ok)|"
    r"what do you think|te gusta|que te parece)\W{0,20}"
)
_COUNT: Final = re.compile(
    r"\W{0,20}(?:(?:aproximadamente|aprox\.?|cerca de|total|contagem|approx\.?|tamanho|word count|character "
    r"count)\W{0,3}(?:de )?)?"
    r"(?:(?:mensagem com )?\d{1,4} (?:caracteres|palavras|characters|words|tokens)"
    r"|(?:caracteres|palavras|characters|words|tokens)\s?[:=]\s?\d{1,4})\W{0,20}"
)
_NOTE: Final = re.compile(
    r"\W{0,6}(?:obs|observac(?:ao|oes)|notas?|note|notes|dicas?|tips?|explicacao|explanation|justificativa|rationale|"
    r"por que (?:essa|esta) "
    r"mensagem funciona|why this works|personalizac(?:ao|oes)|pontos(?: \w+)? da mensagem|estrategia)\W{0,4}[:\-–]"
)
_ABOUT_THE_TEXT: Final = re.compile(
    r"\b(?:(?:a|esta|essa|the|this|la) (?:mensagem|message|mensaje)\b[^\n]{0,40}\b(?:personaliz\w+|criad[ao]|"
    r"escrit[ao]|"
    r"pensad[ao]|elaborad[ao]|redigid[ao]|tom|curta|objetiva|direta|tone|written|short|caracteres)\b|personalizei|"
    r"personalizada (?:com|conforme)|personalize (?:com o nome|a mensagem)|adaptei|adapte (?:a mensagem|o texto)|"
    r"usei|utilizei|evitei|mantive|"
    r"\d+ (?:caracteres|palavras|characters)|placeholders?|dados do lead|i (?:kept|used|avoided|included))\b"
)
_THIS_MESSAGE: Final = re.compile(
    r"\W{0,4}(?:a|essa|esta|the|this|esse|este|la) (?:mensagem|texto|abordagem|message|text|mensaje)(?: acima| above)? "
    r"(?:e|foi|tem|usa|utiliza|mantem|busca|segue|is|has|was|uses|keeps|es|fue)\b"
)
_CRAFT: Final = re.compile(
    r"\b(?:lead|tom|tone|pergunta aberta|open question|objetiva|proximidade|rapport|engaj\w+|personaliz\w+|cta|"
    r"chamada para|"
    r"call to action|nome da empresa|nome do)\b"
)
_OPT_OUT: Final = re.compile(
    r"\b(?:sair|parar|descadastr\w*|cancelar|nao (?:quiser|desejar|queira)|stop|remover|responda|responder)\b"
)
_SENTENCE: Final = re.compile(r"[^.!?…\n]*[.!?…\n]*", re.DOTALL)


def _without_closing(text: str) -> str:
    """Remove "Espero que ajude! Quer que eu ajuste o tom?" and notes on the text after the message."""
    for _ in range(_MOST_REMARKS):
        head, gap, last = _last_paragraph(text)
        folded = fold(text)[len(text) - len(last) :]  # of the whole text, which the other steps fold too
        if head and _is_remark(folded):
            text = head
            continue
        if (cut := _offer_at_end(folded)) and (gap or cut):
            text = (head + gap + last[:cut]).rstrip()
            continue
        return text
    return text


def _last_paragraph(text: str) -> tuple[str, str, str]:
    """Return the text before the last paragraph (or line after a rule), the gap, and the paragraph."""
    at = text.rfind("\n\n")
    if at < 0:
        at = text.rfind("\n")
    if at < 0:
        return "", "", text
    head = text[:at].rstrip()
    last = text[at:].lstrip()
    return head, text[len(head) : len(text) - len(last)], last


def _is_remark(paragraph: str) -> bool:
    if _RULE.match(paragraph) and "_" not in paragraph:
        return True
    if len(paragraph) > 3 * _LONGEST_REMARK:
        return False
    is_remark = _COUNT.fullmatch(paragraph) or _is_comment(paragraph) or _are_remarks(paragraph)
    return bool(is_remark) and not _OPT_OUT.search(paragraph)


def _are_remarks(paragraph: str) -> bool:
    """Return whether all sentences of a paragraph address the operator."""
    found = False
    for sentence in _SENTENCE.findall(paragraph):
        if _GOOD_WISH.fullmatch(sentence) or _is_offer(sentence):
            found = True
        elif any(map(str.isalnum, sentence)) and not _FEEDBACK.fullmatch(sentence):
            return False
    return found


def _is_comment(paragraph: str) -> bool:
    """Return whether a paragraph explains the message to the operator."""
    if _NOTE.match(paragraph):
        return _ABOUT_THE_TEXT.search(paragraph) is not None
    return _THIS_MESSAGE.match(paragraph) is not None and _CRAFT.search(paragraph) is not None


def _is_offer(sentence: str) -> bool:
    return len(sentence) <= _LONGEST_REMARK and _OFFER.search(sentence) is not None


def _offer_at_end(paragraph: str) -> int:
    """Return where the offers at the end of a paragraph begin; 0 if there are none, or nothing else."""
    if not has_any(paragraph, _OFFER_HAS):
        return 0
    spans = [found.span() for found in _SENTENCE.finditer(paragraph) if found[0].strip()]
    cut = len(paragraph)
    for start, end in reversed(spans[1:]):
        sentence = paragraph[start:end]
        if not _is_offer(sentence) or _OPT_OUT.search(sentence):
            break
        cut = start
    return cut if cut < len(paragraph) else 0


# Markdown ------------------------------------------------------------------------------------------------------------

_MD_LINK: Final = re.compile(
    r"!?\[(?P<label>[^\[\]\n]{0,200})\]\([ ]?<?(?P<target>(?:https?:|mailto:|tel:|www\.|/|#|"
    r"[^\s()<>]{1,100}\.)[^\s()<>]{0,1000}"
    r"(?:\([^\s()<>]{0,100}\)[^\s()<>]{0,100})?)>?(?:[ ]\"[^\"\n]{0,200}\")?[ ]?\)",
    re.IGNORECASE,
)
_MD_REFERENCE: Final = re.compile(r"^[ ]{0,3}\[[^\[\]\n]{1,80}\]:[ ]{1,3}https?://\S{1,1000}[ ]{0,3}$", re.MULTILINE)
_MD_HEADING: Final = re.compile(r"^[ ]{0,3}#{1,6}[ \t]{1,4}(?P<title>\S[^\n]{0,300})$", re.MULTILINE)
_MD_BOLD_ITALIC: Final = re.compile(r"\*\*\*(?=[^\s*])(?P<inner>[^*\n]{1,1000})(?<=\S)\*\*\*")
_MD_BOLD: Final = re.compile(r"\*\*(?=\S)(?P<inner>[^*\n]{1,2000})(?<=\S)\*\*")
_MD_BOLD_LINES: Final = re.compile(r"\*\*(?=\S)(?P<inner>[^*]{1,2000})(?<=\S)\*\*")
_MD_UNDERSCORES: Final = re.compile(r"(?<![\w/])__(?=[^\s_])(?P<inner>[^_\n]{1,2000})(?<=\S)__(?!\w)")
_MD_STRIKE: Final = re.compile(r"~~(?=[^\s~])(?P<inner>[^~\n]{1,1000})(?<=\S)~~")
_MD_STRAY: Final = re.compile(r"(?<!\*)\*{2,}(?=\w)|(?<=\w)\*{2,}(?!\w)|(?<=[.!?…:,])\*{2,}|\s\*{2,}\Z")
_MD_SOURCE: Final = re.compile(r"(?<=[\w.!?,;:)\"”])[ ]?(?:\[\^?\d{1,2}\]){1,6}(?!\()")
_MD_SOURCE_LIST: Final = re.compile(
    r"^[ ]{0,3}(?:\[\^\d{1,2}\]:?|\[\d{1,2}\]:|\[\d{1,2}\](?=[^\n]{0,250}(?:https?://|www\.)))[ ][^\n]{1,300}$",
    re.MULTILINE,
)
_NUMBERED_CHOICE: Final = re.compile(r"(?:^|[ \t(])\[\d{1,2}\][ \t]?[^\W\d_]", re.MULTILINE)
"""A number that belongs to the following words: "[1] para sim", "o item [3] do contrato"."""

_BBCODE: Final = re.compile(r"\[(?P<tag>[bius])\](?P<inner>[^\[\]]{1,2000})\[/(?P=tag)\]", re.IGNORECASE)
_MD_ESCAPE: Final = re.compile(r"\\([*_~#\[\]().!>+|{}-])(?![/\\])")
_MD_RULE_LINE: Final = re.compile(r"^[ \t]*(?:(?:-[ \t]?){3,60}|(?:\*[ \t]?){3,60}|[═─━—=]{3,60})[ \t]*$", re.MULTILINE)
_MD_UNDERSCORE_RULE: Final = re.compile(r"(?<=\n)[ \t]*_{3,60}[ \t]*\n(?=\s*\S)")
_RULE_MARKS: Final = ("---", "- -", "***", "* *", "___", "===", "—", "═", "━")
_MD_TABLE_RULE: Final = re.compile(
    r"^[ \t]*\|?(?:[ \t]*:?-{2,40}:?[ \t]*\|){1,20}(?:[ \t]*:?-{2,40}:?[ \t]*)?$", re.MULTILINE
)
_MD_QUOTE_MARK: Final = re.compile(r"^>[ ]?", re.MULTILINE)
_MD_QUOTED: Final = re.compile(r"(?:>[^\n]*(?:\n|\Z))+")
_PLAIN_MARKS: Final = re.compile(r"(?<![\w*])\*(?=[^\s*])(?P<inner>[^*\n]{1,500})(?<=[^\s*])\*(?![\w*])")


_BBCODE_MARKS: Final = {"b": _BOLD, "i": _ITALIC, "s": _STRIKE, "u": _BOLD}


def _without_markdown(text: str, markup: Markup) -> str:
    """Convert Markdown to the channel's markup, or to plain text if it has no equivalent."""
    plainer = _without_spans(_without_blocks(text, markup), markup)
    return _MANY_BREAKS.sub("\n\n", plainer) if plainer != text else text


def _without_blocks(text: str, markup: Markup) -> str:
    """Convert tables, links, quotations, rules and headings."""
    if "|" in text:
        text = _without_tables(text)
    if "[" in text:
        text = _MD_LINK.sub(lambda link: _link(link["label"].strip(), link["target"]), text)
        text = _MD_SOURCE_LIST.sub("", _MD_REFERENCE.sub("", text))
        if not _NUMBERED_CHOICE.search(text):
            text = _MD_SOURCE.sub("", text)
        text = _BBCODE.sub(lambda found: _wrapped(found["inner"], _BBCODE_MARKS[found["tag"].lower()], markup), text)
    if text.startswith(">") and _MD_QUOTED.fullmatch(text):
        text = _MD_QUOTE_MARK.sub("", text)
    if has_any(text, _RULE_MARKS):
        text = _MD_RULE_LINE.sub("", text)
        text = _MD_UNDERSCORE_RULE.sub("\n", text)
    if "#" in text:
        text = _MD_HEADING.sub(lambda heading: _heading(heading["title"], markup), text)
    return text


def _without_spans(text: str, markup: Markup) -> str:
    """Convert bold, italics, strike-through, and escaped characters."""

    def marked(inner: str, mark: str = "*") -> str:
        return inner if markup is Markup.PLAIN else f"{mark}{inner}{mark}"

    if "**" in text:
        text = _MD_BOLD_ITALIC.sub(lambda found: marked(marked(found["inner"], "_")), text)
        text = _MD_BOLD.sub(lambda found: marked(found["inner"]), text)
        text = _MD_BOLD_LINES.sub(lambda found: _each_line(found["inner"], marked), text)
        text = _MD_STRAY.sub("", text)
    if "__" in text:
        text = _MD_UNDERSCORES.sub(lambda found: marked(found["inner"]), text)
    if "~~" in text:
        text = _MD_STRIKE.sub(lambda found: marked(found["inner"], "~"), text)
    if markup is Markup.PLAIN and "*" in text:
        text = _PLAIN_MARKS.sub(lambda found: found["inner"], text)
    return _MD_ESCAPE.sub(r"\1", text) if "\\" in text else text


def _each_line(inner: str, bold: Callable[[str], str]) -> str:
    """Mark each of several lines as bold: no channel carries bold over a line end."""
    return "\n".join(bold(line.strip()) if line.strip() else "" for line in inner.split("\n"))


def _heading(title: str, markup: Markup) -> str:
    bare = title.rstrip("# \t").replace("**", "").replace("__", "").strip()
    return bare if markup is Markup.PLAIN or "*" in bare or not bare else f"*{bare}*"


def _without_tables(text: str) -> str:
    """Convert the rows of a table to lines, with a dash between the cells."""
    if not _MD_TABLE_RULE.search(text):
        return text
    lines: list[str] = []
    for line in text.split("\n"):
        bare = line.strip()
        if _MD_TABLE_RULE.fullmatch(bare):
            continue
        if bare.startswith("|") and bare.endswith("|") and len(bare) > 2:
            bare = " – ".join(cell.strip() for cell in bare[1:-1].split("|") if cell.strip())
            lines.append(bare)
        else:
            lines.append(line)
    return "\n".join(lines)
