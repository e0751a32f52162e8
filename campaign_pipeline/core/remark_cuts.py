"""Removes a model's remarks to the operator before and after the message.

Every pattern is linear in the text, or looks at a bounded number of characters per position. Patterns match folded
text: lower case, without accents.
"""

import re
from typing import Final

from campaign_pipeline.core.reasoning_cuts import GREETING
from campaign_pipeline.core.text_rules import fold, has_any

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


def without_preamble(text: str) -> str:
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


def without_closing(text: str) -> str:
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
