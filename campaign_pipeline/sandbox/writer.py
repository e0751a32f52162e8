"""Texts of the mock language model: first-contact sales messages, always the same for a prompt."""

import re
from functools import partial

_NAME_LINE = re.compile(
    r"""^[ \t>*•"'-]*nome(?:[ ]completo|[ ]d[oae][ ](?:lead|cliente|contato))?[*"']*[ \t]*:[ \t*"']*(?P<name>[^\n]+)""",
    re.IGNORECASE | re.MULTILINE,
)
_FIRST_NAME = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_LONGEST_NAME = 20

_GREETINGS = ("Olá{}!", "Oi{}, tudo bem?", "Olá{}, como vai?", "Oi{}! Espero que esteja tudo bem por aí.")
_INTRODUCTIONS = (
    "Vi o seu interesse em melhorar o atendimento e achei que valia a pena uma conversa rápida.",
    "Acompanho empresas do seu segmento e lembrei de você ao ver alguns resultados recentes.",
    "Seu contato chegou até nós e eu queria entender melhor o momento do seu negócio.",
    "Estou ajudando equipes comerciais a responder mais rápido, sem aumentar o time.",
    "Notei que você pediu mais informações há alguns dias e quis retomar o assunto.",
)
_ARGUMENTS = (
    "Em poucas semanas, nossos clientes costumam reduzir bastante o tempo de resposta.",
    "A implantação é simples e acompanhamos cada etapa junto com a sua equipe.",
    "Dá para começar pequeno, medir o resultado e só depois ampliar.",
    "Muita gente começa pelo diagnóstico gratuito, que leva uns quinze minutos.",
    "Você ganha previsibilidade e continua falando com cada cliente do seu jeito.",
)
_LISTS = (
    "Em resumo:\n- resposta em minutos\n- histórico em um só lugar\n- relatórios simples de ler",
    "O que costuma fazer diferença:\n- menos trabalho manual\n- mais retorno por contato",
    "Três coisas que resolvemos:\n- fila de espera\n- contatos esquecidos\n- falta de acompanhamento",
)
_QUESTIONS = (
    "Posso te mostrar como funciona ainda esta semana?",
    "Faz sentido conversarmos por dez minutos?",
    "Qual é o melhor horário para falarmos?",
    "Quer que eu te envie um exemplo?",
    "Você prefere continuar por aqui ou por telefone?",
)


def first_name_in(prompt: str) -> str | None:
    """Find a lead's first name in a line such as `Nome: Ana Souza`; None if there is none."""
    line = _NAME_LINE.search(prompt)
    word = _FIRST_NAME.search(line["name"]) if line is not None else None
    if word is None or len(word[0]) > _LONGEST_NAME:
        return None
    return word[0]


def write_message(name: str | None, digest: bytes) -> str:
    """Write a first contact of 80 to 400 characters; `digest` (at least 6 bytes) selects words and layout."""
    greeting = _pick(_GREETINGS, digest[0]).format(f", {name}" if name else "")
    introduction = _pick(_INTRODUCTIONS, digest[1])
    question = _pick(_QUESTIONS, digest[2])
    layout = digest[3] % 4
    if layout == 0:  # short: two or three sentences
        return f"{greeting} {introduction} {question}"
    if layout == 1:  # one paragraph
        return f"{greeting} {introduction} {_pick(_ARGUMENTS, digest[4])} {question}"
    if layout == 2:  # three paragraphs
        return f"{greeting} {introduction}\n\n{_pick(_ARGUMENTS, digest[4])}\n\n{question}"
    return f"{greeting} {introduction}\n\n{_pick(_LISTS, digest[5])}\n\n{question}"


def _pick(texts: tuple[str, ...], byte: int) -> str:
    return texts[byte % len(texts)]


_BREAK = re.compile(r"\n\s*\n\s*|(?<=[.!?])\s+")
_QUOTED_TEXT = re.compile(
    r"<(?P<tag>(?:texto|mensagem|message|text)(?:_\d+)?)>\s*(?P<tagged>.*?)\s*</(?P=tag)>"
    r"|\"\"\"\s*(?P<quoted>.*?)\s*\"\"\"|```\w*\n(?P<fenced>.*?)\n?```",
    re.IGNORECASE | re.DOTALL,
)
_COMFORTABLE_PART = 120  # characters


def text_to_split(request: str) -> str | None:
    """Find the text of a split request between tags, triple quotes or fences; None if there is none."""
    quoted = _QUOTED_TEXT.search(request)
    if quoted is None:
        return None
    return next(text for text in quoted.group("tagged", "quoted", "fenced") if text is not None)


def split_text(text: str, most: int) -> list[str]:
    """Split at paragraphs and sentences into at most `most` parts of similar length; only whitespace is lost."""
    text = text.strip()
    if not text:
        return []
    later = list(_BREAK.finditer(text))
    wanted = min(most, len(later) + 1, max(2, round(len(text) / _COMFORTABLE_PART)))
    parts: list[str] = []
    start = 0
    for cuts_after_this in range(wanted - 2, -1, -1):
        ideal = start + (len(text) - start) / (cuts_after_this + 2)
        chosen = min(later[: len(later) - cuts_after_this], key=partial(_distance, ideal))
        later = [each for each in later if each.start() > chosen.start()]
        parts.append(text[start : chosen.start()].rstrip())
        start = chosen.end()
    parts.append(text[start:])
    return parts


def _distance(ideal: float, place: re.Match[str]) -> float:
    return abs(place.start() - ideal)
