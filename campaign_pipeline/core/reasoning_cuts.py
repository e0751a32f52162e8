"""Removes reasoning and control tokens from a model's answer.

Only what is certainly not the message is removed. If it is uncertain which part is the message, the answer is refused
and generated again. Every pattern is linear in the text, or looks at a bounded number of characters per position.
"""

import re
from typing import Final

from campaign_pipeline.core.text_rules import TextProblem, fold, has_any

_NAMES: Final = (
    r"think(?:ing)?|thoughts?|thought_process|chain_of_thought|cot|reason(?:ing)?|reflection|reflex[aã]o|analysis|"
    r"an[aá]lis[ei]s?|scratchpad|(?:inner_)?monologue|internal(?:_thoughts?)?|racioc[ií]nio|pensamentos?|pensando|"
    r"planning|planejamento|razonamiento|pensamiento|dados_do_lead"
)
# <think>, </thinking type="x">, [THINK], ◁/think▷, <|START_THINKING|>, <seed:think>
_REASONING_MARK: Final = re.compile(
    r"(?:<[|｜]|[<\[◁＜⟨])\s{0,3}(?P<close>/?)\s{0,3}(?:\w{1,12}:)?(?:ant|deep)?"
    r"(?:(?P<end>end|finish)[_▁ ](?:of[_▁ ])?|(?:start|begin)[_▁ ](?:of[_▁ ])?)?"
    rf"(?:{_NAMES})(?:_\w{{1,20}})?(?:[\s:=][^<>\[\]▷\n]{{0,200}})?\s{{0,3}}/?[|｜]?[>\]▷＞⟩]",
    re.IGNORECASE,
)
_ANSWER_NAMES: Final = (
    r"answer|final_answer|final|resposta(?:_final)?|response|output|message|mensagem|mensaje|texto?|result|msg|"
    r"whatsapp(?:_message)?|solution"
)
_ANSWER_MARK: Final = re.compile(
    rf"(?:<[|｜]|<)(?P<close>/?)(?:(?P<end>end)_of_|begin_of_)?(?:{_ANSWER_NAMES})(?:\s[^<>\n]{{0,100}})?[|｜]?>",
    re.IGNORECASE,
)
_MARKS: Final = "<[◁＜⟨"
"""Every mark and token of reasoning begins with one of these; without any of them, most steps do nothing."""

_DETAILS: Final = re.compile(r"</?details\b[^<>]{0,300}>", re.IGNORECASE)
_TOOL_CALL: Final = re.compile(
    r"<\|?/?(?:tool|function)[_▁](?:calls?|response|results?)\b|\[/?TOOL_(?:CALLS?|RESULTS?)\]|<｜tool▁"
    r"|<(?:function|invoke|parameter)[ =]",
    re.IGNORECASE,
)
_TOOL_FENCE: Final = ("```tool_code", "```tool_call", "```tool_output")

# Tokens --------------------------------------------------------------------------------------------------------------

_TOKEN: Final = re.compile(
    r"<[|｜](?P<piped>[^<>|｜\n]{1,60})[|｜]>"
    r"|<(?P<plain>/?s|bos|eos|pad|unk|mask|sep|cls|eot|eod|endoftext|end_of_turn|start_of_turn|end_of_utterance|"
    r"unused\d{1,4}|0x[0-9A-F]{2})>"
    r"|\[(?P<square>/?INST|EOS|BOS|PAD|/?SYS|/?SYSTEM_PROMPT|/?ASSISTANT|END)\]"
    r"|\[\|(?P<framed>/?\w{1,30})\|\]"
    r"|<</?(?P<sys>SYS)>>"
    r"|<\|?(?P<turn>turn)\|?>",
    re.IGNORECASE,
)
_LONGEST_STRIKE: Final = 300  # characters of a struck-out passage
_ENDS: Final = frozenset(
    [
        "im_end",
        "eot_id",
        "eot",
        "eom_id",
        "end_of_text",
        "endoftext",
        "end_of_turn",
        "end",
        "return",
        "eos",
        "/s",
        "end▁of▁sentence",
        "end_of_sentence",
        "end_of_turn_token",
        "endofturn",
        "end_response",
        "end_of_utterance",
        "eod",
        "/inst",
        "call",
    ]
)
_STARTS: Final = frozenset(["im_start", "start_header_id", "start_of_turn", "start", "start_of_turn_token", "inst"])
_ROLE: Final = re.compile(
    r"\s{0,4}(?P<role>assistant|model|ai|bot|chatbot|user|system|human|tool|developer|assistente|usu[aá]rio)"
    r"(?=\s*(?:\n|\Z|<|:))[ \t]*:?[ \t]*",
    re.IGNORECASE,
)
_OUR_ROLES: Final = frozenset({"assistant", "model", "ai", "bot", "chatbot", "assistente"})
# The beginning of a token at which the answer was cut off: "<|im_e", "</thi", "<|end|".
_BROKEN_TOKEN: Final = re.compile(r"<(?:[|｜][^<>\n]{0,60}|/?(?P<word>[a-z_]{1,14})|/)\Z", re.IGNORECASE)
_TOKEN_WORDS: Final = ("thinking", "thought", "reasoning", "s", "eos", "bos", "pad", "end_of_turn", "endoftext")

# A turn that the model wrote for another speaker, as in training data.
_IMAGINED_TURN_HAS: Final = ("\n##", "human:", "user:", "assistant:")
_IMAGINED_TURN: Final = re.compile(
    r"(?<=\S)\s{0,4}\n(?:#{2,4} (?:instruction|instrucao|input|response|resposta|user|human|assistant)\b|(?:human|"
    r"user|assistant):)",
    re.IGNORECASE,
)

# Harmony: the channels of gpt-oss ------------------------------------------------------------------------------------

_CHANNEL: Final = re.compile(r"<\|channel\|>\s{0,3}(?P<name>\w{1,20})[^<>\n]{0,80}", re.IGNORECASE)
_CONTENT_END: Final = re.compile(r"<\|(?:end|return|start|call|channel)\|>", re.IGNORECASE)
_MESSAGE_TOKEN: Final = re.compile(
    r"\s{0,3}(?:<\|constrain\|>\s{0,3}\w{0,20}\s{0,3})?(?:<\|message\|>)?", re.IGNORECASE
)
_GLUED_FINAL: Final = re.compile(r"assistant\s?final(?:\s?message)?[: \n]?")

# Reasoning announced only in words; matched on folded text -----------------------------------------------------------

GREETING: Final = re.compile(
    r"[^\w\n]{0,6}(?:ola|oi+|oie|opa|ei|bom dia|boa tarde|boa noite|prezad[oa]s?|car[oa]s?|estimad[oa]s?|hola|hello|hi|"
    r"hey|dear|good (?:morning|afternoon|evening)|buen[oa]s (?:dias|tardes|noches)|e ai|tudo (?:bem|certo)|saudacoes)\b"
)
"""The beginning of a message; matched on folded text."""

_HEADINGS: Final = (
    r"reasoning|thinking|thoughts?|thought process|my thought process|thinking process|chain of thought|analysis|"
    r"internal monologue|raciocinio|pensamento|pensando|analise(?: do lead| dos dados)?|reflexao|"
    r"cadeia de pensamento|processo de pensamento|plano da mensagem|razonamiento|pensamiento|"
    r"analisis|"
    r"estrategia da mensagem|justificativa"
)
_REASONING_HEADING: Final = re.compile(
    rf"\s*(?:[*_#>\[(]{{1,6}}[ \t]*)?(?:{_HEADINGS})(?:[*_\]]{{0,3}}[ \t]*:[*_]{{0,3}}|[*_]{{2,3}}[ \t]*(?=\n)|"
    rf"(?<=#)[ \t]*(?=\n))"
    rf"|\s*#{{1,6}}[ \t]+(?:{_HEADINGS})[ \t]*(?=\n)"
)
_REASONING_OPENING: Final = re.compile(
    r"\s*(?:(?:ok(?:ay)?|certo|entendido|hmm+|bem|bom|alright|well|so|vamos la|claro)[,.!]?\s+)?(?:so,? )?(?:"
    r"o usuario (?:quer|pediu|pede|deseja|solicit|esta pedindo|precisa)|the user (?:wants|asked|asks|is asking|"
    r"requests|"
    r"needs|would like)|user wants|el usuario (?:quiere|pide|pidio|necesita)|"
    r"(?:i need to|i should|i will|i'll|i have to|let me|let's|we need to|we should|we have to|we must)\s+"
    r"(?:write|craft|create|draft|produce|think|respond|analy[sz]e|compose|generate|output)|"
    r"(?:preciso|vou|devo|tenho que|necessito|vamos) (?:escrever|criar|redigir|elaborar|gerar|produzir|pensar|analisar)"
    r"(?: (?:uma?|a|o|em|nos|os|as))?(?: \w+){0,3} (?:mensagem|texto|e-?mail|primeiro contato|dados|resposta|lead)|"
    r"first,? (?:i (?:need|should|have|will|must)(?: to)?|let me|let's) (?:consider|analy[sz]e|think|look|understand|"
    r"review|write)\b|primeiro,? (?:preciso|vou|devo) (?:analisar|pensar|escrever|considerar|criar)\b|"
    r"here(?:'s|’s| is) my (?:thought process|thinking|reasoning|analysis)|aqui esta (?:o )?meu raciocinio|"
    r"(?:thought|pensou|pensei) (?:for|por|durante) (?:about )?(?:a few |alguns |\d+ ?)\w+|"
    r"(?:thinking|pensando)\s?(?:\.{2,3}|…))"
)
_ANSWER_LABEL: Final = re.compile(
    r"^[*_#> \t]{0,8}(?:(?:here(?:'s|’s| is)|aqui esta) (?:my|the|a|minha) )?"
    r"(?:mensagem|message|mensaje|resposta|respuesta|response|answer|final|texto|output|saida|e-?mail)"
    r"(?: (?:final|answer|message|de primeiro contato|para o lead|pronta|a enviar|text))?[*_ \t]{0,4}:[*_ \t]{0,4}"
    r"|^(?:#{1,6}[ \t]{1,3}|\*{1,3})(?:mensagem|message|mensaje|resposta|respuesta|response|answer)(?: "
    r"final)?[*_ \t]{0,4}$",
    re.MULTILINE,
)
_BLANK_LINE: Final = re.compile(r"\n[ \t]*\n\s*")


def without_reasoning(text: str) -> str:
    """Remove reasoning and control tokens from an answer.

    Raises TextProblem: `reasoning` if it is uncertain what of the answer is the message, `control_tokens` if it has
    nothing but tokens or a tool call.
    """
    if text.startswith("```"):
        text = _without_fenced_reasoning(text)
    if has_any(text, _MARKS):
        if _TOOL_CALL.search(text):
            raise TextProblem("control_tokens", "The model answered with a call of a tool instead of a text.")
        text = _final_channel(text)
        text = _without_marked(text)
        text = _inside_answer_marks(text)
        text = _without_tokens(text)
    else:
        text = _without_imagined_turn(_after_glued_channel(text))
    return _without_announced(text)


_REASONING_FENCE: Final = re.compile(rf"```(?:{_NAMES})[ \t]*\n(?P<inner>.*?)```\s*", re.DOTALL | re.IGNORECASE)


def _without_fenced_reasoning(text: str) -> str:
    """Remove a leading code block whose heading says that it is reasoning."""
    if text.startswith(_TOOL_FENCE):
        raise TextProblem("control_tokens", "The model answered with a call of a tool instead of a text.")
    found = _REASONING_FENCE.match(text)
    return text[found.end() :] if found else text


def _unsure(what: str) -> TextProblem:
    return TextProblem("reasoning", f"The model's answer holds reasoning, and {what}.")


def _final_channel(text: str) -> str:
    """Return the content of the last `final` channel, if the answer has channels."""
    channels = list(_CHANNEL.finditer(text))
    if not channels:
        return _after_glued_channel(text)
    final = next((found for found in reversed(channels) if found["name"].lower() == "final"), None)
    if final is None:
        raise _unsure("has no final channel")
    start = _MESSAGE_TOKEN.match(text, final.end())
    begin = start.end() if start else final.end()
    end = _CONTENT_END.search(text, begin)
    return text[begin : end.start() if end else len(text)]


def _after_glued_channel(text: str) -> str:
    """Return the text after "assistantfinal", left over if a server strips the tokens of an answer with channels."""
    folded = fold(text)
    if folded.startswith("analysis") and (finals := list(_GLUED_FINAL.finditer(folded))):
        return text[finals[-1].end() :]
    return text


def _without_marked(text: str) -> str:
    """Remove what is between marks such as <think> and </think>, or before a lone closing mark."""
    kept: list[str] = []
    opened, position = False, 0
    for mark in _REASONING_MARK.finditer(text):
        closes = bool(mark["close"] or mark["end"])
        if not opened and not closes:
            kept.append(text[position : mark.start()])
            opened = True
        elif closes:
            if not opened:  # the opening mark is missing, as when a chat template writes it
                kept.clear()
            opened, position = False, mark.end()
    if opened:
        raise _unsure("it never ends: the message may be missing or be part of it")
    kept.append(text[position:])
    return _without_details("".join(kept))


def _without_details(text: str) -> str:
    """Remove <details> blocks in which front ends fold reasoning."""
    if "<details" not in text.lower():
        return text
    kept: list[str] = []
    depth = position = 0
    for mark in _DETAILS.finditer(text):
        if mark[0].startswith("</"):
            depth = max(0, depth - 1)
            if not depth:
                position = mark.end()
        else:
            if not depth:
                kept.append(text[position : mark.start()])
            depth += 1
    if depth:
        raise _unsure("it never ends")
    kept.append(text[position:])
    return "".join(kept)


def _inside_answer_marks(text: str) -> str:
    """Return what is between <answer> and </answer>, if the answer marks its message so."""
    marks = list(_ANSWER_MARK.finditer(text))
    if not marks:
        return text
    opening = [mark for mark in marks if not (mark["close"] or mark["end"])]
    closing = [mark for mark in marks if mark["close"] or mark["end"]]
    if len(opening) > 1 or len(closing) > 1:
        raise TextProblem("options", "The model answered with several messages instead of one.")
    begin = opening[0].end() if opening else 0
    end = closing[0].start() if closing else len(text)
    return text[begin:end] if begin <= end else text


def _without_tokens(text: str) -> str:
    """Remove control tokens, roles, and turns that the model wrote for another speaker."""
    tokens = _tokens(text)
    if tokens:
        text = _own_turn(text, tokens)
        if not text.strip():
            raise TextProblem("control_tokens", "The model answered with control tokens and no text.")
    text = _without_imagined_turn(text)
    broken = _BROKEN_TOKEN.search(text)
    if broken and (broken["word"] is None or any(word.startswith(broken["word"].lower()) for word in _TOKEN_WORDS)):
        text = text[: broken.start()]
    return text


def _without_imagined_turn(text: str) -> str:
    folded = fold(text)
    if not has_any(folded, _IMAGINED_TURN_HAS):
        return text
    imagined = _IMAGINED_TURN.search(text)
    return text[: imagined.start()] if imagined else text


def _tokens(text: str) -> list[re.Match[str]]:
    """Find the control tokens of an answer. <s>…</s> inside a text is HTML strike-through, not a sequence boundary."""
    tokens: list[re.Match[str]] = []
    crossing_out = False
    for token in _TOKEN.finditer(text):
        name = (token["plain"] or "").lower()
        if name == "s" and not crossing_out and text[: token.start()].strip():
            crossing_out = "</s>" in text[token.end() : token.end() + _LONGEST_STRIKE].lower()
            if crossing_out:
                continue
        if name == "/s" and crossing_out:
            crossing_out = False
            continue
        tokens.append(token)
    return tokens


def _own_turn(text: str, tokens: list[re.Match[str]]) -> str:
    kept = [text[: tokens[0].start()]]
    ours = True
    for number, token in enumerate(tokens):
        name = next(name for name in token.groups() if name).strip().casefold()
        following = tokens[number + 1].start() if number + 1 < len(tokens) else len(text)
        piece = text[token.end() : following]
        if name in _ENDS and "".join(kept).strip():
            break  # the rest is a conversation that the model imagines
        if name in _OUR_ROLES or name in {"user", "system", "human"}:
            ours = name in _OUR_ROLES
        elif name in _STARTS and (role := _ROLE.match(piece)):
            ours = role["role"].casefold() in _OUR_ROLES
            piece = piece[role.end() :]
        if ours:
            kept.append(piece)
    return "".join(kept)


def _without_announced(text: str) -> str:
    """Remove a block with the heading "Reasoning:", or one that begins as thinking aloud does."""
    folded = fold(text)
    if not (_REASONING_HEADING.match(folded) or _REASONING_OPENING.match(folded)):
        return text
    if labels := list(_ANSWER_LABEL.finditer(folded)):
        return text[labels[-1].end() :]
    for gap in _BLANK_LINE.finditer(folded):
        if GREETING.match(folded, gap.end()):
            return text[gap.end() :]
    raise _unsure("nothing tells where the message begins")
