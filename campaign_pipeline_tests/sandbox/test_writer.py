import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_pipeline.sandbox.phone import canonical_number, jid_of
from campaign_pipeline.sandbox.writer import first_name_in, split_text, text_to_split, write_message

digests = st.binary(min_size=8, max_size=8)
words = st.text("abcçãé .!?\n-:", max_size=300)


def bare(text: str) -> str:
    return "".join(text.split())


@given(st.none() | st.text("abcdeé", min_size=1, max_size=20), digests)
def test_a_message_has_80_to_400_characters_and_names_the_lead(name: str | None, digest: bytes) -> None:
    message = write_message(name, digest)
    assert 80 <= len(message) <= 400
    assert name is None or f" {name}!" in message or f" {name}," in message
    assert not set(message) & set("{}[]")


def test_messages_differ_in_layout() -> None:
    messages = [write_message("Ana", bytes([no] * 8)) for no in range(60)]
    assert any("\n- " in message for message in messages)
    assert any("\n" not in message for message in messages)
    assert len(set(messages)) > 20


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("Nome: Ana Souza", "Ana"),
        ("Dados:\n- **Nome:** João Paulo\n- Cidade: Recife", "João"),
        ("  nome completo: MARIA", "MARIA"),
        ('{\n  "nome": "D\'Ávila Lima"\n}', "D'Ávila"),
        ("Nome no WhatsApp: loja", None),
        ("Nome da empresa: Padaria", None),
        ("Sobrenome: Souza", None),
        ("Nome: 42", None),
        ("Nome:\nEmpresa: Padaria", None),
        ("", None),
    ],
)
def test_a_name_is_found_in_its_own_line_only(prompt: str, name: str | None) -> None:
    assert first_name_in(prompt) == name


@given(words, st.integers(1, 6))
def test_parts_are_the_text_itself(text: str, most: int) -> None:
    parts = split_text(text, most)
    assert bare("".join(parts)) == bare(text)
    assert len(parts) <= most
    assert all(part.strip() == part and part for part in parts)


@given(digests, st.integers(2, 5))
def test_every_message_can_be_split(digest: bytes, most: int) -> None:
    assert 2 <= len(split_text(write_message("Ana", digest), most)) <= most


@pytest.mark.parametrize(
    "request_text",
    [
        "Divida:\n\n<mensagem>\nOi! Tudo bem?\n</mensagem>",
        "Divida:\n<mensagem_2>Oi! Tudo bem?</mensagem_2>",
        'Divida: """Oi! Tudo bem?"""',
        "Divida:\n```\nOi! Tudo bem?\n```",
    ],
)
def test_a_marked_text_is_found_in_a_request_to_split(request_text: str) -> None:
    assert text_to_split(request_text) == "Oi! Tudo bem?"


@pytest.mark.parametrize(
    ("number", "canonical"),
    [
        ("5511987654321", "5511987654321"),  # area codes below 31 keep the ninth digit
        ("+55 (31) 98765-4321", "553187654321"),
        ("5531961234567", "5531961234567"),  # the old number began with 6: it never had one digit less
        ("553187654321", "553187654321"),
        ("351912345678", "351912345678"),
    ],
)
def test_a_number_is_written_as_it_is_registered(number: str, canonical: str) -> None:
    assert canonical_number(number) == canonical
    assert jid_of(number) == f"{canonical}@s.whatsapp.net"


def test_a_jid_stays_as_it_is() -> None:
    assert jid_of("123@lid") == "123@lid"
