import json
from time import process_time

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from campaign_pipeline.core.splitting import (
    TextTooLong,
    accept_proposal,
    cluster_starts,
    effective_max_parts,
    parse_proposal,
    split_text,
)

FAMILY = "👨‍👩‍👧‍👦"
GREETING = (
    "Olá, Sra. Márcia! Tudo bem? Sou o Dr. Paulo, da Clínica Sol Ltda. em Campinas, e vi que a Padaria Aurora abriu "
    "uma segunda loja. Nosso plano sai por R$ 1.500,00 ao mês. Posso explicar em 10 minutos?"
)

# Pieces that look like what people write, glued in any order; white space never stands before a combining mark.
pieces = st.sampled_from(
    [
        *(
            "Olá",
            "Sr.",
            "Dra.",
            "R$ 1.500,00",
            "https://exemplo.com.br/a?b=1.",
            "Tudo bem?",
            "Sim!",
            "fim.",
            "e...",
            "é",
        ),
        *(
            "…",
            FAMILY,
            "🇧🇷",
            "👍🏽",
            "1️⃣",
            "e\u0301",
            "한",
            "\ud83d\ude00",
            "- item",
            "2. Passo",
            ":",
            "x" * 30,
            "\u2028",
        ),
    ]
)
gaps = st.sampled_from(["", " ", " ", "  ", "\n", "\n\n", "\r\n", "\t", "\u00a0"])
messages = st.lists(st.tuples(pieces, gaps), max_size=60).map(lambda pairs: "".join(a + b for a, b in pairs))
anything = st.text(max_size=300) | messages


def bare(text: str) -> str:
    return "".join(text.split())


def breaks_a_character(text: str, parts: tuple[str, ...]) -> bool:
    """Return whether a part begins inside a grapheme of the text."""
    starts, position = cluster_starts(text), 0
    for part in parts:
        position = text.index(part, position)
        if not starts[position]:
            return True
        position += len(part)
    return False


# --- the configured number of parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 2, 3, 4, 5])
def test_one_to_five_parts_are_used_as_configured(value: int) -> None:
    assert effective_max_parts(value) == (value, None)


@pytest.mark.parametrize("value", [None, 0, -1, 6, 10**30, True, 2.0, "4"])
def test_any_other_number_becomes_three_with_a_warning(value: int | None) -> None:
    parts, warning = effective_max_parts(value)
    assert parts == 3
    assert warning is not None
    assert warning.startswith("max_split_parts is ")
    assert warning.endswith("must be from 1 to 5: 3 is used.")


# --- where cuts fall --------------------------------------------------------------------------------------------------


def test_a_short_text_stays_whole() -> None:
    assert split_text("Olá, Ana!\n\nTudo bem?", 3, 1000) == ("Olá, Ana!\n\nTudo bem?",)


def test_a_blank_text_has_no_parts() -> None:
    assert split_text(" \n\t ", 3, 1000) == ()


def test_one_part_leaves_any_text_whole_that_fits() -> None:
    assert split_text(f"  {GREETING}\n", 1, 1000) == (GREETING,)


def test_from_the_threshold_on_a_text_is_cut() -> None:
    text = "Uma frase com vinte. " * 7 + "ab."  # 150 characters
    assert len(text) == 150
    assert len(split_text(text, 3, 1000)) == 2
    assert split_text(text, 3, 1000, min_chars=151) == (text,)


def test_paragraphs_become_parts() -> None:
    paragraphs = ("Olá, Ana! Tudo bem? " + "a" * 60 + ".", "Vi o site. Gostei. " + "b" * 70 + ".", "Vamos falar? " * 6)
    assert split_text("\n\n".join(paragraphs), 3, 1000) == tuple(part.strip() for part in paragraphs)


def test_more_paragraphs_than_parts_are_grouped_evenly() -> None:
    paragraphs = [letter * 80 for letter in "abcdef"]
    parts = split_text("\n\n".join(paragraphs), 3, 1000)
    assert parts == tuple("\n\n".join(paragraphs[n : n + 2]) for n in (0, 2, 4))


def test_a_tiny_paragraph_is_not_a_part_of_its_own() -> None:
    parts = split_text("Oi!\n\n" + "Esta frase tem um tamanho normal. " * 10, 3, 1000)
    assert len(parts) == 2
    assert min(len(part) for part in parts) > 100


def test_a_short_greeting_before_one_long_sentence_is_not_a_part_of_its_own() -> None:
    text = "Oi, Ana! " + "palavra " * 40 + "fim."
    assert split_text(text, 3, 1000) == (text,)


def test_list_items_stay_whole_and_with_their_introduction() -> None:
    items = [f"- Item número {n} da lista, com explicação." for n in range(6)]
    text = "Temos para a sua empresa as opções:\n" + "\n".join(items)
    parts = split_text(text, 3, 1000)
    assert 1 < len(parts) <= 3
    assert parts[0].startswith("Temos para a sua empresa as opções:\n- Item")
    assert all(line in [*items, "Temos para a sua empresa as opções:"] for part in parts for line in part.split("\n"))


def test_abbreviations_prices_and_titles_do_not_end_a_sentence() -> None:
    parts = split_text(GREETING, 5, 1000, min_chars=20)
    assert len(parts) >= 3
    for part in parts:
        assert not part.endswith(("Sra.", "Dr.", "Ltda.", "R$", "1."))
        assert part[-1] in "!?."
    assert "".join(parts).count("R$ 1.500,00") == 1


@pytest.mark.parametrize(
    "whole",
    [
        "Fale com o Sr. Silva amanhã",
        "Fale com a Dra. Souza amanhã",
        "na Av. Paulista, nº. 1000",
        "com J. R. Tolkien hoje",
        "da Souza & Cia. Ltda. em Recife",
        "na Petróleo S.A. Brasil",
        "por R$ 1.500,00 ou US$ 2.5 por mês",
        "em https://exemplo.com.br/a.b?c=d.e&f!g agora",
        "versão 3.14 do produto",
        "pensei... talvez dê certo",
        "etc. e tal",
        "os passos 1. Ligar 2. Vender",
    ],
)
def test_no_sentence_ends_inside(whole: str) -> None:
    text = f"Primeira frase bem comum. {whole}. Terceira frase bem comum."
    parts = split_text(text, 5, 1000, min_chars=1)
    assert any(f"{whole}." in part for part in parts)


@pytest.mark.parametrize("end", [".", "!", "?", "?!", "…", "...", '."', "!)", "! 😊", ". 👍🏽🇧🇷", "!*"])
def test_a_sentence_ends_after(end: str) -> None:
    first = f"A primeira frase termina aqui{end}"
    assert split_text(f"{first} A segunda frase continua ali.", 2, 1000, min_chars=1)[0] == first


def test_parts_of_even_sentences_are_balanced() -> None:
    parts = split_text("Esta é uma frase de tamanho médio. " * 30, 5, 1000)
    lengths = [len(part) for part in parts]
    assert len(parts) == 5
    assert max(lengths) - min(lengths) <= 2 * 35


def test_without_ends_of_sentences_a_text_that_fits_is_left_whole() -> None:
    text = "palavra " * 40
    assert split_text(text, 3, 1000) == (text.strip(),)


def test_white_space_is_cut_only_where_a_part_would_be_too_long() -> None:
    parts = split_text("palavra " * 40, 4, 100)
    assert all(len(part) <= 100 and set(part.split()) == {"palavra"} for part in parts)


def test_a_price_holds_together_when_words_must_be_cut() -> None:
    text = "por apenas R$ 100 cada " * 12
    for max_chars in range(60, 100):
        parts = split_text(text, 5, max_chars)
        assert not any(part.endswith("R$") for part in parts)


def test_a_word_longer_than_a_part_is_cut_and_its_neighbours_are_not() -> None:
    text = "começo bom " + "x" * 150 + " final bom"
    parts = split_text(text, 5, 100)
    assert bare("".join(parts)) == bare(text)
    assert parts[0].startswith("começo bom")
    assert parts[-1].endswith("final bom")


def test_words_are_broken_where_the_parts_could_not_hold_the_text_otherwise() -> None:
    assert split_text("aaaaaa bbbbbb cccccc", 2, 10) == ("aaaaaa bbb", "bbb cccccc")


def test_a_text_longer_than_all_parts_is_refused() -> None:
    with pytest.raises(TextTooLong, match="31 characters and does not fit in 3 parts of at most 10 characters"):
        split_text("a" * 31, 3, 10)


def test_a_text_as_long_as_all_parts_is_cut() -> None:
    assert split_text("a" * 30, 3, 10) == ("a" * 10,) * 3


def test_a_visible_character_longer_than_a_part_is_refused_rather_than_broken() -> None:
    with pytest.raises(TextTooLong, match="does not fit in 5 parts of at most 6"):
        split_text(FAMILY * 2, 5, 6)


CLUSTERS = [
    *(
        FAMILY,
        "🇧🇷",
        "👍🏽",
        "1️⃣",
        "e\u0301\u0323",
        "\u1112\u1161\u11ab",
        "🏴\U000e0067\U000e0062\U000e007f",
        "\ud83d\ude00",
    ),
]


@pytest.mark.parametrize("cluster", [*CLUSTERS, "\r\n"])
def test_a_visible_character_starts_once(cluster: str) -> None:
    assert list(cluster_starts(cluster * 3)) == [1, *[0] * (len(cluster) - 1)] * 3
    assert list(cluster_starts(f"a{cluster}b")) == [1, 1, *[0] * (len(cluster) - 1), 1]


def test_white_space_that_carries_an_accent_is_no_place_to_cut() -> None:
    assert split_text("aaaa \u0301bb cc", 2, 8, 0) == ("aaaa \u0301bb", "cc")


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_hard_cut_leaves_visible_characters_whole(cluster: str) -> None:
    text = cluster * 40
    limit = len(cluster) * 9 + 1  # as a plain cut would break the tenth
    parts = split_text(text, 5, limit)
    assert "".join(parts) == text
    assert all(len(part) % len(cluster) == 0 for part in parts)


@pytest.mark.parametrize(("max_parts", "max_chars"), [(0, 100), (3, 0), (-1, -1)])
def test_limits_below_one_are_refused(max_parts: int, max_chars: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        split_text("texto", max_parts, max_chars)


@pytest.mark.parametrize("unit", ["a. ", "A. B! ", "x", "🇧🇷", "e\u0301", "\n", "....", "😀 ", "[", " \u00a0"])
def test_long_texts_of_any_kind_are_cut_in_well_under_a_second(unit: str) -> None:
    text = "Oi " + unit * (20_000 // len(unit)) + "fim"
    started = process_time()
    parts = split_text(text, 5, 4096)
    assert process_time() - started < 1.5
    assert bare("".join(parts)) == bare(text)


@given(anything, st.integers(1, 5), st.integers(1, 120), st.integers(0, 200))
@example("aaaaaa bbbbbb cccccc", 2, 10, 0)
@example(f"{FAMILY} {FAMILY}", 3, 7, 0)
@example("a \u0301b", 2, 2, 0)
def test_nothing_is_lost_and_every_limit_holds(text: str, max_parts: int, max_chars: int, min_chars: int) -> None:
    stripped = text.strip()
    try:
        parts = split_text(text, max_parts, max_chars, min_chars)
    except TextTooLong:
        longest = max(map(len, _clusters(stripped)))
        # Refused: longer than all parts; or so full of long characters that they leave room unused in each part.
        assert len(stripped) > max_parts * (max_chars - longest + 1)
        return
    assert bare("".join(parts)) == bare(text)
    assert len(parts) <= max_parts
    assert all(part and part == part.strip() and len(part) <= max_chars for part in parts)
    assert all(part in text for part in parts)
    if len(stripped) < min_chars and len(stripped) <= max_chars:
        assert len(parts) <= 1


def _clusters(text: str) -> list[str]:
    """Split a text into graphemes."""
    starts = [index for index, is_start in enumerate(cluster_starts(text)) if is_start]
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


@given(messages, st.integers(1, 5), st.integers(30, 120))
def test_no_visible_character_is_broken(text: str, max_parts: int, max_chars: int) -> None:
    text = text.strip()
    assume(text)
    try:
        parts = split_text(text, max_parts, max_chars, 0)
    except TextTooLong:
        assume(False)
    assert not breaks_a_character(text, parts)


@given(st.lists(st.text("abcdefgh.,!?", min_size=1, max_size=20), min_size=1, max_size=80), st.integers(60, 200))
def test_words_stay_whole_while_the_parts_have_room(words: list[str], max_chars: int) -> None:
    text = " ".join(words)
    assume(len(text) <= 5 * (max_chars - 20))  # each part may leave a word's length unused
    parts = split_text(text, 5, max_chars)
    assert [word for part in parts for word in part.split(" ")] == words


# --- a model's proposal -----------------------------------------------------------------------------------------------


def test_a_proposal_that_is_the_same_text_is_taken() -> None:
    assert accept_proposal("Olá, Ana!  Tudo bem?\nVamos falar?", ["Olá, Ana!", "Tudo bem? Vamos falar?"], 3, 100) == (
        "Olá, Ana!",
        "Tudo bem?\nVamos falar?",  # with the line break that the model lost
    )


def test_white_space_that_a_model_adds_inside_a_word_does_not_reach_the_lead() -> None:
    assert accept_proposal("Custa R$ 1.500,00. Serve?", ["Custa R$ 1. 500,00.", " Serve ?"], 2, 100) == (
        "Custa R$ 1.500,00.",
        "Serve?",
    )


@pytest.mark.parametrize(
    "proposal",
    [
        [],
        ["", " "],
        ["Olá, Ana!"],
        ["Olá, Ana!", "Tudo bem?", "Abraço"],
        ["Tudo bem?", "Olá, Ana!"],
        ["olá, ana!", "tudo bem?"],
        ["Olá, Ana! 😊", "Tudo bem?"],
        ["Olá, A", "na! Tudo bem?"],
        ["Olá,", "Ana!", "Tudo", "bem?"],
        "Olá, Ana! Tudo bem?",
        ["Olá, Ana!", 7],
        [None],
    ],
)
def test_a_proposal_that_is_another_text_or_breaks_a_limit_is_not_taken(proposal: list[str]) -> None:
    assert accept_proposal("Olá, Ana! Tudo bem?", proposal, 3, 100) is None


def test_a_proposal_with_a_part_that_is_too_long_is_not_taken() -> None:
    assert accept_proposal("Olá, Ana! Tudo bem?", ["Olá, Ana!", "Tudo bem?"], 2, 9) is not None
    assert accept_proposal("Olá, Ana! Tudo bem?", ["Olá, Ana!", "Tudo bem?"], 2, 8) is None


@given(messages, st.integers(1, 5), st.integers(30, 200))
def test_our_own_parts_are_a_proposal_that_is_taken_unless_a_word_was_cut(
    text: str, max_parts: int, max_chars: int
) -> None:
    try:
        parts = split_text(text, max_parts, max_chars)
    except TextTooLong:
        assume(False)
    assume(parts)
    accepted = accept_proposal(text, parts, max_parts, max_chars)
    assert accepted in (parts, None)
    if [word for part in parts for word in part.split()] == text.split():
        assert accepted == parts


@given(messages, st.lists(messages, max_size=6), st.integers(1, 5), st.integers(1, 200))
def test_what_is_taken_is_always_the_same_text_within_the_limits(
    text: str, proposal: list[str], max_parts: int, max_chars: int
) -> None:
    for candidate in (proposal, [text], text.split(), text.split("\n\n")):
        accepted = accept_proposal(text, candidate, max_parts, max_chars)
        if accepted is not None:
            assert bare("".join(accepted)) == bare(text) == bare("".join(candidate))
            assert 1 <= len(accepted) <= max_parts
            assert all(0 < len(part) <= max_chars for part in accepted)


# --- a model's answer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        '{"parts": ["um", "dois"]}',
        '["um", "dois"]',
        '```json\n{"parts": ["um", "dois"]}\n```',
        'Claro! Aqui está:\n\n{"parts": ["um", "dois"]}\n\nEspero ter ajudado {risos}.',
        'Partes [1] e {2}: {"parts": ["um", "dois"]}',
        '{"resultado": {"parts": ["um", "dois"]}}',
        '\ufeff  {"parts":["um","dois"],"total":2}',
    ],
)
def test_parts_are_found_whatever_stands_around_them(answer: str) -> None:
    assert parse_proposal(answer) == ["um", "dois"]


def test_real_line_breaks_inside_strings_are_read() -> None:
    assert parse_proposal('{"parts": ["um\ndois", "três"]}') == ["um\ndois", "três"]


@pytest.mark.parametrize(
    "answer",
    [
        *("", "Olá!", "{}", "[]", '{"parts": []}', '{"parts": "um"}', '{"parts": [1, 2]}', '{"parts": ["um", null]}'),
        *('{"parts": ["um", "do', "null"),
        pytest.param("[" * 100_000, id="deep list"),
        pytest.param('{"a":' * 50_000, id="deep object"),
        pytest.param("{" * 1000 + '{"parts": ["um"]}', id="many starts"),
        pytest.param(f"[{'9' * 5000}]", id="a number beyond Python's limit"),
    ],
)
def test_an_answer_without_parts_gives_none(answer: str) -> None:
    assert parse_proposal(answer) is None


@given(st.lists(st.text(), min_size=1), st.text(st.characters(exclude_characters="[{")), st.text(), st.booleans())
def test_any_parts_come_back_as_they_were(parts: list[str], before: str, after: str, wrapped: bool) -> None:
    value = {"parts": parts} if wrapped else parts
    assert parse_proposal(before + json.dumps(value) + after) == parts


@given(st.text() | st.text('{}[]",:parts \\u0d8n'))
def test_no_answer_makes_the_parser_crash(answer: str) -> None:
    found = parse_proposal(answer)
    assert found is None or all(isinstance(part, str) for part in found)
