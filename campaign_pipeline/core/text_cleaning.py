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
from campaign_pipeline.core.reasoning_cuts import without_reasoning
from campaign_pipeline.core.remark_cuts import without_closing, without_preamble
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
        ("preamble_cut", without_preamble),
        ("closing_cut", without_closing),
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
