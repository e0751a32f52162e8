"""Finds texts that must not be sent.

Refusals, several versions in one, unfilled placeholders, missing values, and contacts that the model invented.

A text may contain what the model was told: `Known`. Every pattern is linear in the text, or looks at a bounded number
of characters per position.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from campaign_pipeline.core.contacts import KnownContacts, known_in, may_have_contact, unknown_contact
from campaign_pipeline.core.json_answers import looks_like_json
from campaign_pipeline.core.reasoning_cuts import GREETING
from campaign_pipeline.core.text_rules import TextProblem, fold, has_any


@dataclass(frozen=True)
class Known:
    """What the model was told, and so may repeat."""

    values: tuple[
        str, ...
    ] = ()  # the lead's data: names, companies, tags, custom fields, its own numbers and addresses
    instructions: tuple[str, ...] | None = None  # the operator's texts; None: contacts are not checked

    @classmethod
    def of(cls, instructions: Iterable[str], values: Iterable[str]) -> "Known":
        """Build from the operator's texts and the lead's values."""
        return cls(tuple(filter(None, values)), tuple(filter(None, instructions)))

    def contacts(self) -> KnownContacts:
        """Return the contacts in either."""
        contacts = KnownContacts.of(self.values)
        for text in self.instructions or ():
            contacts = contacts.joined_with(known_in(text))
        return contacts

    def has(self, words: str) -> bool:
        """Return whether the lead's data contains these words, as whole words, ignoring case and accents."""
        wanted = fold(words).strip()
        values = fold("\n".join(self.values))
        at = values.find(wanted) if wanted else -1
        while at >= 0:
            end = at + len(wanted)
            before, after = values[max(0, at - 1) : at], values[end : end + 1]
            if not (before.isalnum() or after.isalnum()):
                return True
            at = values.find(wanted, at + 1)
        return False


NOTHING_KNOWN: Final = Known()
"""Use it if the input is unknown: contacts are then not checked."""


def check(text: str, known: Known) -> None:
    """Raise TextProblem with the first rule that a cleaned text breaks."""
    if looks_like_json(text):
        raise TextProblem("malformed", "The model answered with JSON in which no message can be read.")
    folded = fold(text)
    if _has_options(folded):
        raise TextProblem("options", "The model answered with several versions of the message instead of one.")
    if _is_refusal(folded):
        raise TextProblem("refusal", "The model answered that it cannot or will not write the message.")
    check_fields(text, known)
    if known.instructions is None or not may_have_contact(text):
        return
    if rule := unknown_contact(text, known.contacts()):
        what = {
            "unknown_link": "a link",
            "unknown_number": "a phone number or another long number",
            "unknown_email": "an e-mail address",
            "unknown_payment_key": "a payment key",
        }[rule]
        reason = (
            f"The model's text has {what} that stands neither in the campaign's instructions nor in the lead's data."
        )
        raise TextProblem(rule, reason)


def check_fields(text: str, known: Known = NOTHING_KNOWN) -> None:
    """Raise TextProblem if a field is unfilled (`placeholder`) or filled with nothing (`empty_value`)."""
    if has_placeholder(text, known):
        raise TextProblem("placeholder", "The model's text has a field that was not filled in.")
    if _has_empty_value(text, known):
        raise TextProblem(
            "empty_value", "The model's text has an empty value, such as None or null, in place of a name."
        )


# Unfilled fields -----------------------------------------------------------------------------------------------------

_URL: Final = re.compile(
    r"(?:https?://|www\.)[^\s<>{}]+|(?<![\w.-])(?:[\w-]{1,63}\.){1,6}[\w-]{1,63}/[^\s<>{}]*", re.IGNORECASE
)
_MARKDOWN_LINK: Final = re.compile(
    r"\[[^\[\]\n]{0,200}\](?:\((?:https?:|mailto:|tel:|www\.|/|#|[^\s()]{0,100}\.)[^\s()]{0,2000}\)|\[\w{0,40}\])",
    re.IGNORECASE,
)
_NAME: Final = r"[^\W\d_][\w .,'ºª/|:()-]{0,58}"
_DOUBLE: Final = re.compile(r"\{\{[^{}\n]{1,80}\}\}|\[\[[^\[\]\n]{1,80}\]\]|<<[^<>\n]{1,80}>>|\{%[^{}\n]{1,80}%\}")
_BRACKETED: Final = (
    ("{", re.compile(rf"\{{\s?{_NAME}\s?\}}")),
    ("[", re.compile(r"\[\s{0,3}(?:[A-Z]|_{1,9}|\?{1,3})\s{0,3}\]")),
    ("%", re.compile(r"%%[^\W\d_]\w{1,40}%%|<%[^%\n]{1,80}%>")),
    ("‹", re.compile(r"‹[^‹›\n]{1,60}›")),
    ("*|", re.compile(r"\*\|[^|*\n]{1,40}\|\*")),
    ("[", re.compile(rf"\[\s?{_NAME}[\w)]\.?\s?\]")),
    ("<", re.compile(r"<[^\W\d_][\w '-]{0,58}\w>")),
    ("%", re.compile(r"(?<![\w%])%[^\W\d_]\w{1,40}%(?!\w)")),
    ("", re.compile(r"[【〔〖［「『⟦⟨｛][^【】〔〕〖〗［］「」『』⟦⟧⟨⟩｛｝\n]{1,60}[】〕〗］」』⟧⟩｝]")),
    ("#", re.compile(r"(?<![\w#])#[^\W\d_]\w{1,40}(?: \w{1,20}){0,3}#(?!\w)")),
    ("$", re.compile(r"(?<![\w$])\$\{?[^\W\d_][\w.]{1,40}\}?(?![\w$])")),
    ("@{", re.compile(r"(?<![\w@])@\{[^{}\n]{1,40}\}")),
)
_BRACKETS_OPEN: Final = re.compile(r"\*\||[‹{\[<%【〔〖［「『⟦⟨｛#$@]")  # how each of these begins
_BLANKS: Final = (  # each with what a text must contain before its pattern is tried
    ("___", re.compile(r"(?<!_)_{3,}(?!_)")),  # a blank to be filled in by hand
    ("......", re.compile(r"(?<![.\w])\.{6,}(?![.\w])")),
    ("....", re.compile(r"(?<=\w )\.{4,5}(?= \w)")),
    ("dd/mm", re.compile(r"(?<!\w)(?<!formato )DD/MM(?:/AA(?:AA)?)?(?!\w)", re.IGNORECASE)),
    ("hh", re.compile(r"(?<!\w)(?<!formato )HH[:hH]MM(?!\w)")),
    ("xx", re.compile(r"(?<![A-Za-z])X{3,}(?![A-Za-z])|(?<![A-Za-z])x{4,}(?![A-Za-z])")),
    ("xx", re.compile(r"(?<![A-Za-z])[Xx]{2,}(?:[-./:, ][Xx]{2,})+(?![A-Za-z])")),
    ("xx", re.compile(r"(?<![A-Za-z])[Xx]{2,}\s?(?:%|h\b|reais\b)|\d[Xx]{3,}|\(\s?[Xx]{2}\s?\)")),
    ("r$", re.compile(r"R\$\s?[Xx_]{1,}(?![A-Za-z])")),
    ("0000", re.compile(r"(?<![\d.,])(?:\(\d{2}\)[ ]?)?(?:0{4,5}-0{4}|(?<=[)] )0{8,9}|(?<=[)])0{8,9})(?!\d)")),
    ("9999", re.compile(r"(?<![\d.,])(?:\(?\d{2}\)?[ ]?)?9{4,5}-9{4}(?!\d)")),
    ("1234", re.compile(r"(?<![\d.,])(?:\(?\d{2}\)?[ ]?)?(?:1234-5678|12345-6789|91234-5678)(?!\d)")),
)
_BLANKS_HAVE: Final = tuple({needed: None for needed, _ in _BLANKS})
# Bracketed words that are no field: editor's marks, kinds of attachment.
_HARMLESS: Final = frozenset(
    {"sic", "ok", "pdf", "video", "audio", "foto", "imagem", "gif", "spoiler", "novo", "novidade", "gratis"}
)

_FIELD: Final = (
    r"(?:(?:primeiro |pre)?nome(?: completo| fantasia)?|sobrenome|empresa|cargo|funcao|telefone|celular|"
    r"fone|e-?mail|"
    r"cidade|endereco|site|website|link(?: d[eoa] \w+)?|url|data|horario|hora|dia|valor|preco|produto|servico|"
    r"assinatura|contato|"
    r"numero|cnpj|cpf|segmento|setor|ramo|bairro|estado|regiao|razao social|cliente|lead|vendedora?|consultora?|"
    r"negocio|beneficio|"
    r"desconto|oferta|instagram|(?:first |last |full |company |your |customer |client |lead )?name|company|phone|"
    r"job title|position|title|date|time|product|nombre|apellido|puesto|ciudad|fecha)"
)
_OF: Final = (
    r"(?: (?:do|da|de|dos|das|of|the|aqui|here|completo|completa|principal|empresa|cliente|lead|vendedora?|contato|"
    r"loja|"
    r"negocio|comercial|profissional|d[oa]\(a\))){0,4}"
)
_TO_FILL: Final = re.compile(
    r"\W{0,3}(?:"
    rf"(?:seu|sua|seus|teu|tua|your|tu|su)(?:\(a\))? {_FIELD}{_OF}"
    r"|(?:meu|minha|my|nosso|nossa)(?:\(a\))? (?:nome|cargo|empresa|name|company|title)"
    r"|(?:insira|inserir|insert|preencha|preencher|colocar|adicionar|incluir|informar|add|enter)(?: [\w-]{1,20}){1,8}"
    rf"|(?:coloque|adicione|digite|informe|inclua|complete|escreva|cite|mencione|especifique)(?: (?:o|a|os|as|seu|sua|"
    rf"um|uma|aqui)){{0,3}} {_FIELD}{_OF}"
    rf"|(?:nome|name|nombre|cargo|telefone|link|data|site|valor|numero|e-?mail)(?: completo)? (?:do|da|de|dos|das|"
    rf"of|del|d[oa]\(a\))(?: (?:sua?|seu|minha|meu|nossa?))?"
    r" (?:empresa|cliente|lead|vendedora?|remetente|destinatari[oa]|contato|consultora?|pessoa|loja|negocio|"
    r"produto|site|atendente|"
    r"agendamento|reuniao|calendario|company|client|sender|recipient|the company)"
    r"|(?:primeiro |pre)?nome(?: completo)?|sobrenome|assinatura|empresa|cargo|cargo/empresa|(?:first |full )?name|"
    r"company(?: name)?"
    r")\W{0,3}\Z"
)
_BRACKETS: Final = "[]{}<>%#$@【】〔〕〖〗［］「」『』⟦⟧⟨⟩｛｝ "
_LONGEST_SIGNATURE: Final = 60
_PARENTHESES: Final = re.compile(r"\(([^()\n]{3,60})\)")
_COLONS: Final = re.compile(r"(?<![\w:]):([a-z][a-z_]{2,30}):(?![\w:])")
_NAMED_AS_A_FIELD: Final = re.compile(
    r"\b(?:meu nome e|me chamo|sou(?: o| a)?|aqui e(?: o| a)?|my name is|i am|i'm|mi nombre es) "
    r"(?:seu nome|your name|tu nombre|nome do (?:vendedor|consultor)|fulan[oa](?: de tal)?|beltran[oa]|john doe)\b"
    r"(?! (?:de|em|n[oa]|limpo)\b)"  # "sou o seu nome de confiança", "aqui é o Seu Nome Limpo"
)
_ALONE: Final = re.compile(
    rf"(?:fulan[oa]|beltran[oa]|sicran[oa])(?: de tal)?|(?:seu|sua|your|tu) {_FIELD}{_OF}|"
    r"nome d[oa] (?:vendedora?|empresa|consultora?|remetente)|your name"
)
_GREETED_FIELD: Final = re.compile(
    r"\b(?:ola|oi|prezad[oa]|car[oa]|bom dia|boa tarde|boa noite|hello|hi|dear|hola),? "
    r"[*_«“\"'(]{0,2}(?P<field>(?:o )?nome(?: d[oa] (?:lead|cliente|contato|empresa))?|lead|first name|name|nombre|"
    r"fulan[oa](?: de tal)?|nome_\w+|\w+_nome)[*_»”\"')]{0,2}(?=\s{0,2}(?:[!,.?\n]|\Z))|\bfulan[oa] de tal\b"
)


_GREETED_FIELD_HAS: Final = ("nome", "name", "nombre", "lead", "fulan")
_ALONE_HAS: Final = ("seu ", "sua ", "your ", "tu ", "nome d", "fulan", "beltran", "sicran", "john doe")


def has_placeholder(text: str, known: Known = NOTHING_KNOWN) -> bool:
    """Return whether a field is unfilled. In links, only double brackets count."""
    bracketed = _BRACKETS_OPEN.search(text) is not None
    if bracketed and any(not known.has(found[0][2:-2]) for found in _DOUBLE.finditer(text)):
        return True
    plain = _MARKDOWN_LINK.sub(" ", text) if "[" in text else text
    if "/" in plain or "www." in plain:
        plain = _URL.sub(" ", plain)
    folded = fold(plain)
    return (
        (
            bracketed
            and any(
                _is_field(found[0], known)
                for needed, each in _BRACKETED
                if needed in plain
                for found in each.finditer(plain)
            )
        )
        or (
            has_any(folded, _BLANKS_HAVE)
            and any(
                not known.has(found[0])
                for needed, each in _BLANKS
                if needed in folded
                for found in each.finditer(plain)
            )
        )
        or ("(" in folded and any(_is_named_field(found, known) for found in _PARENTHESES.finditer(folded)))
        or (":" in folded and any(_is_named_field(found, known) for found in _COLONS.finditer(folded)))
        or _has_field_in_words(folded, known)
    )


def _has_field_in_words(folded: str, known: Known) -> bool:
    """Return whether a greeting or a signature contains the name of a field instead of a name."""
    if has_any(folded, _GREETED_FIELD_HAS) and any(
        not known.has(found["field"] or found[0]) for found in _GREETED_FIELD.finditer(folded)
    ):
        return True
    if not has_any(folded, _ALONE_HAS):
        return False
    return _NAMED_AS_A_FIELD.search(folded) is not None or any(
        _ALONE.fullmatch(line.strip(" ,.-–—*_")) for line in folded.split("\n") if len(line) <= _LONGEST_SIGNATURE
    )


def _is_field(bracketed: str, known: Known) -> bool:
    """Return whether a word in the brackets of a field is none of the lead's own words."""
    inner = fold(bracketed).strip(_BRACKETS)
    return inner not in _HARMLESS and (not known.has(inner) or _TO_FILL.match(inner) is not None)


def _is_named_field(found: "re.Match[str]", known: Known) -> bool:
    """Return whether words in other brackets name a field: "(seu nome)", ":nome:"."""
    return _TO_FILL.match(found[1].replace("_", " ")) is not None and not known.has(found[1])


# Values that are missing ---------------------------------------------------------------------------------------------

_EMPTY_VALUE: Final = re.compile(
    r"(?<![\w.@/#'\"“-])(?:None|null|NULL|Null|undefined|Undefined|NaN|nan|N/A|n/a|#N/A|#REF!|\[object Object\]|"
    r"\(vazio\)|\(null\)|\(none\))(?![\w@/'\"”]|[.-]\w)"
)
_EMPTY_VALUE_HAS: Final = ("none", "null", "undefined", "nan", "n/a", "#ref!", "[object", "(vazio)")
_ODD_COMMA: Final = re.compile(r"[,\s]\s{0,2}[!?;.,…]")  # what remains if a name is missing
_NOBODY: Final = re.compile(
    r"(?:^|[\n.!?] ?)(?:ola|oi|oie|bom dia|boa tarde|boa noite|prezad[oa]s?|car[oa]s?|hola|hello|"
    r"dear)(?:,\s{0,2}[!?;]|,\s{0,2}(?:\.{3}|…)\s?,|,\s{0,2}\.(?!\.)| ,|,,|, ,|\s+[!,;](?!\w))"
)


_GREETED_NOBODY: Final = re.compile(
    r"\b(?:ola|oi|oie|bom dia|boa tarde|boa noite|prezad[oa]|car[oa]|hola|hello|hi|dear),? [*_(\[\"“]{0,2}"
    r"(?:sem nome|(?:nome )?nao (?:informado|identificado|cadastrado|consta|disponivel)|desconhecid[oa]|anonim[oa]|"
    r"n/[adi]|nulo|vazio|unknown|no name|unnamed|not (?:provided|available|informed)|sin nombre)"
    r"[*_)\]\"”]{0,2}(?=\s{0,2}(?:[!,.?\n]|\Z))"
)


def _has_empty_value(text: str, known: Known) -> bool:
    folded = fold(text)
    if _GREETED_NOBODY.search(folded[:300]):
        return True
    if has_any(folded, _EMPTY_VALUE_HAS) and any(not known.has(found[0]) for found in _EMPTY_VALUE.finditer(text)):
        return True
    head = folded[:300]
    return _ODD_COMMA.search(head) is not None and _NOBODY.search(head) is not None


# Several versions ----------------------------------------------------------------------------------------------------

_OPTION: Final = re.compile(
    r"^[*_#>\-–( \t]{0,8}(?:(?P<kind>opcao|opcoes|option|versao|version|variante|variacao|variation|alternativa|"
    r"alternative|"
    r"sugestao|suggestion|mensagem|message|mensaje|exemplo|modelo|texto|abordagem|"
    r"opcion)[ \t]{0,3}(?:n[º°o.]{0,2}[ \t]?)?[#(]?"
    r"(?P<number>\d{1,2}|[a-e]|i{1,3}|um|dois|duas|tres|one|two)\b|(?P<ordinal>\d)[ªº°a][ \t](?:opcao|versao|"
    r"alternativa|sugestao))"
    r"[^\n]{0,80}?(?:[:.)\-–—*_]|$)",
    re.MULTILINE,
)
_OPTION_HAS: Final = (
    *("opca", "opco", "option", "versa", "versi", "varia", "alternativ", "sugest", "suggest", "mensa", "message"),
    *("exemplo", "modelo", "texto", "abordagem"),
)
_OR_LINE: Final = re.compile(r"\n[*_\-–( \t]{0,6}(?:ou|or|o bien|ou entao|ou ainda)[*_\-–):,. \t]{0,6}\n")
_HELLO: Final = re.compile(r"[^\w\n]{0,6}(?:ola|oi|oie|prezad[oa]s?|car[oa]|hola|hello|hi|dear)\b[ ,!]")
# A greeting after a number, a letter or a label: "1) Olá", "B. Oi", "Versão curta: Olá".
_GREETED_LINE: Final = re.compile(
    r"^[*_#>\-–( \t]{0,8}(?:[\da-e]{1,2}[*_ \t]{0,3}[.)\]:–-]|[a-z][^\n:.!?]{2,40}:)[*_ \t\"“]{0,6}"
    r"(?:ola|oi|oie|prezad[oa]s?|car[oa]|hola|hello|hi|dear)\b[ ,!]",
    re.MULTILINE,
)
_PARAGRAPH: Final = re.compile(r"\n[ \t]*\n")


def _has_options(folded: str) -> bool:
    labels = list(_OPTION.finditer(folded)) if has_any(folded, _OPTION_HAS) else []
    numbers = {label["number"] or label["ordinal"] for label in labels}
    if len(numbers) > 1:
        # A list of plans in a message follows its greeting; versions of a message each have their own greeting.
        greeted = sum(bool(GREETING.match(folded, _content_start(folded, label.end()))) for label in labels)
        if greeted > 1 or not folded[: labels[0].start()].strip():
            return True
    if len(_GREETED_LINE.findall(folded)) > 1:
        return True
    if any(GREETING.match(folded, line.end()) for line in _OR_LINE.finditer(folded)):
        return True
    paragraphs = [each.strip() for each in _PARAGRAPH.split(folded) if each.strip()]
    if sum(bool(_HELLO.match(each)) for each in paragraphs) > 1:
        return True
    long = [each for each in paragraphs if len(each) > 40]
    return len(set(long)) < len(long)


def _content_start(text: str, start: int) -> int:
    while start < len(text) and (text[start].isspace() or text[start] in ':.)-–—*_"“'):
        start += 1
    return start


# Refusals ------------------------------------------------------------------------------------------------------------

_CANNOT: Final = (
    r"(?:nao (?:posso|consigo|poderei|podemos|conseguirei|sou capaz de|estou autorizad[oa] a|tenho (?:permissao|"
    r"autorizacao|como|"
    r"condicoes)(?: para| de)?|e possivel)|i (?:can(?:no|')?t|can’t|cannot|am unable to|am not able to)|"
    r"i'm (?:unable|not able) to|i’m (?:unable|not able) to|unable to|no puedo|no me es posible|no podre|recuso-me "
    r"a|nego-me a)"
)
_WRITE: Final = (
    r"(?:te |lhe |voce |you )?(?:ajudar|auxiliar|atender|cumprir|fornecer|gerar|criar|escrever|produzir|redigir|"
    r"elaborar|continuar|"
    r"prosseguir|realizar|compor|concluir|completar|responder a|participar|assist|help|fulfill|comply|provide|"
    r"generate|create|write|"
    r"produce|compose|continue|complete|do that|ayudar\w*|cumplir|generar|crear|escribir|redactar|continuar)"
)
_REQUEST: Final = (
    r"(?:pedido|solicitacao|requisicao|tarefa|mensagem|mensagens|conteudo|texto|isso|esse tipo|este tipo|request|"
    r"task|message|content|"
    r"that|this|with that|solicitud|peticion|mensaje|contenido|eso|esto|instruc\w+|e-?mail|primeiro contato|spam)"
)
_REFUSAL: Final = re.compile(
    rf"\b{_CANNOT}\W{{1,3}}(?:\w+\W{{1,3}}){{0,2}}?{_WRITE}\b[^.!?\n]{{0,60}}?\b{_REQUEST}\b"
    rf"|\b{_CANNOT} (?:ajudar|assist|help|ayudar|atender|comply|cumprir|prosseguir|continuar|continue)(?:-lo|-la|"
    rf"-te)?\s*[.!]"
)
_AS_A_MODEL: Final = re.compile(
    r"\b(?:como|enquanto|sou|as|i am|i'm|i’m|soy) (?:uma?|an?|un|una)? ?(?:modelo de linguagem|language model|"
    r"ai language model|ai model|modelo de lenguaje"
    r"|(?:inteligencia artificial|ia|assistente (?:virtual|de ia)|ai assistant|ai)\b[^.!?\n]{0,60}\b"
    r"(?:nao (?:posso|consigo|tenho acesso|tenho a capacidade|sou capaz)|can(?:no|')?t|can’t|don't have|no puedo))"
)
_LACKS_DATA: Final = re.compile(
    r"\b(?:preciso|precisaria|necessito|precisamos|i need|i would need|i'd need|necesito|por favor|please|"
    r"falta(?:m|ram)?|"
    r"nao (?:ha|tenho|foram|foi|recebi|encontrei)|there is(?:n't| no)|i don't have|proporcioname)"
    r"\b[^.!?\n]{0,80}\b(?:informac|dados|detalhes|information|details|data|contexto|context|informacion|datos)\w*"
    r"\b[^.!?\n]{0,60}?\b(?:(?:para|to|so i can) (?:\w+ ){1,3}(?:\w+ )?(?:mensagem|texto|e-?mail|primeiro contato|"
    r"message|"
    r"mensaje)|(?:do|sobre o|about the|of the) lead\b|(?<=foram )fornecid[oa]s|fornecid[oa]s? (?:sobre|do|para))"
    r"|\bnao (?:foram|foi) fornecid[oa]s?\b[^.!?\n]{0,40}\b(?:dados|informac\w+|detalhes|contexto)\b"
)
_WAITS_FOR_DATA: Final = re.compile(
    r"\A\W{0,3}(?:entendid[oa]|certo|ok(?:ay)?|claro|perfeito|pronto|estou pront[oa]|understood|"
    r"i'm ready|ready)\b[^\n]{0,80}"
    r"\b(?:aguardo|envie|mande|informe|forneca|compartilhe|send|provide|share)\b[^.!?\n]{0,30}"
    r"\b(?:dados|informac\w+|detalhes|data|details|information)(?: do lead| sobre o lead| of the lead)?\s*[.!]?\s*\Z"
    r"|\bpara (?:escrever|criar|redigir|elaborar|gerar) (?:a|uma|essa|esta) mensagem\b[^.!?\n]{0,30}\b(?:preciso|"
    r"necessito)\b"
)
_CANNOT_ABROAD: Final = re.compile(
    r"\bje ne peux pas (?:vous |t')?(?:aider|repondre|generer|ecrire|fournir|satisfaire|traiter|creer)\b"
    r"|\bich kann\b[^.!?\n]{0,60}\bnicht\b[^.!?\n]{0,30}"
    r"\b(?:helfen|bearbeiten|erstellen|erfullen|schreiben|beantworten)\b"
    r"|\bnon posso (?:aiutar\w*|soddisfare|scrivere|generare|fornire|creare)\b"
)
_AN_ERROR: Final = re.compile(
    r"\W{0,5}(?:(?:internal )?(?:server )?error\b\s?[:!\d]|exception\b(?:\s?[:!]| in\b)|traceback\b|"
    r"rate limit (?:exceeded|reached)|(?:error )?[45]\d\d (?:bad gateway|internal server error|service|gateway|"
    r"too many requests|forbidden|not found|unauthorized|request))"
)
_CANNOT_HAS: Final = ("nao ", "i can", "able to", "no puedo", "no me es", "no podre", "recuso-me", "nego-me")
_NO_MODEL_CAN: Final = ("nao ", "cant", "cannot", "can't", "can’t", "don't have", "no puedo")
_REFUSALS: Final = (  # each with words of which the pattern needs one: searching for those is much faster
    (_CANNOT_HAS, _REFUSAL),
    (("modelo de l", "language model", "ai model", *_NO_MODEL_CAN), _AS_A_MODEL),
    (("je ne peux", "ich kann", "non posso"), _CANNOT_ABROAD),
    (("informac", "dados", "detalhes", "information", "details", "data", "context", "datos"), _LACKS_DATA),
)
_READ_FOR_REFUSAL: Final = 1_500
_SHORT_ANSWER: Final = 200  # characters; a longer text that asks its reader for data is a message


def _is_refusal(folded: str) -> bool:
    """Return whether a text is a refusal: a refusal says so at its beginning."""
    head = folded[:_READ_FOR_REFUSAL]
    if _AN_ERROR.match(head) or (len(folded) < _SHORT_ANSWER and _WAITS_FOR_DATA.search(head)):
        return True
    return any(pattern.search(head) for needed, pattern in _REFUSALS if has_any(head, needed))


# Emptiness -----------------------------------------------------------------------------------------------------------


_FILLERS: Final = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and symbols without a visible form."""


def is_blank(text: str) -> bool:
    """Return whether a text has no visible character."""
    return not any(unicodedata.category(char)[0] in "LNPS" and char not in _FILLERS for char in text)
