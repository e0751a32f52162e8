"""Decoding, opening and mapping of files."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from campaign_pipeline.leads import LeadsFile, LeadsFileError, read_leads
from campaign_pipeline.leads.encoding import decode
from campaign_pipeline_tests.leads.workbooks import Rows, workbook

TEXT = "Nome;Telefone;Observações\nJoão Conceição;14998764401;Avó já não está à porta\nInês;14998764402;pão\n"
NAMES = ["João Conceição", "Inês"]


def read(content: bytes | str, tmp_path: Path, **chosen: list[str]) -> LeadsFile:
    file = tmp_path / "leads.csv"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_leads(file, chosen)


def names(found: LeadsFile) -> list[str]:
    return [lead.client_name for lead in found.leads]


# Encodings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "how", "note"),
    [
        ("utf-8", "UTF-8", ""),
        ("cp1252", "Windows-1252", ""),
        ("cp850", "CP850 (MS-DOS)", "read as CP850"),
        ("mac_roman", "Mac Roman", "read as Mac Roman"),
        ("utf-16-le", "UTF-16 without a byte order mark", "The file is UTF-16 without"),
        ("utf-16-be", "UTF-16 without a byte order mark", "The file is UTF-16 without"),
        ("utf-32", "UTF-32 with a byte order mark", ""),
    ],
)
@pytest.mark.parametrize("upper", [False, True])
def test_the_encoding_is_detected_from_the_whole_file_and_reported(
    encoding: str, how: str, note: str, upper: bool, tmp_path: Path
) -> None:
    text = TEXT.upper() if upper else TEXT
    found = read(text.encode(encoding), tmp_path)
    assert names(found) == [name.upper() if upper else name for name in NAMES]
    assert found.how.startswith(how)
    assert note in " ".join(found.notes)


def test_the_telling_accent_may_stand_at_the_end_of_a_long_file(tmp_path: Path) -> None:
    rows = "".join(f"Ana;149{n:08d}\n" for n in range(20_000))
    found = read(f"Nome;Telefone\n{rows}João;14998764401\n".encode("cp850"), tmp_path)
    assert names(found)[-1] == "João"
    assert found.how.startswith("CP850")


def test_a_file_that_was_encoded_twice_is_read_with_one_layer_taken_off(tmp_path: Path) -> None:
    twice = "".join(
        chr(b) if b in {0x81, 0x8D, 0x8F, 0x90, 0x9D} else bytes((b,)).decode("cp1252") for b in TEXT.encode()
    )
    found = read(twice, tmp_path)
    assert names(found) == NAMES
    assert "encoded in UTF-8 twice" in " ".join(found.notes)


def test_rows_that_were_encoded_twice_among_others_are_left_out_by_line(tmp_path: Path) -> None:
    found = read("Nome;Telefone\nJoão;14998764401\nJoÃ£o;14998764402\nMAÇÃ S.A.;14998764403\n", tmp_path)
    assert names(found) == ["João", "MAÇÃ S.A."]
    assert [(problem.line, "encoded in UTF-8 twice" in problem.message) for problem in found.problems] == [(3, True)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.sampled_from([b"\xe9", b"\xe3", b"\x80", b"\xc3 "]), st.integers(5, 60))
def test_one_bad_byte_costs_its_own_line_only(at: int, byte: bytes, rows: int) -> None:
    lines = [f"João Conceição {n};149{n:08d}".encode() for n in range(rows)]
    at = min(at, rows - 1)
    lines[at] = b"Z" + byte + lines[at]
    decoded = decode(b"Nome;Telefone\n" + b"\n".join(lines))
    assert (decoded.encoding, list(decoded.undecodable)) == ("UTF-8", [at + 2])
    assert decoded.text.count("João Conceição") == rows


# Quotes ---------------------------------------------------------------------------------------------------------------


def test_a_quote_that_swallows_a_row_and_is_closed_later_is_named_and_costs_its_own_row(tmp_path: Path) -> None:
    found = read(
        'Nome;Telefone;Obs\nAna;14998764401;"sem fim\nBia;14998764402;ok\nCau;14998764403;"\nDio;14998764404;ok\n',
        tmp_path,
    )
    assert names(found) == ["Bia", "Dio"]
    assert [problem.line for problem in found.problems] == [2, 4]
    assert "has an unclosed quote, which extends over line 3" in found.problems[0].message


def test_a_note_of_many_lines_is_a_note(tmp_path: Path) -> None:
    found = read('Nome;Telefone;Obs\nAna;14998764401;"liguei; não atende\nàs 14h; 15h\n14998764402"\n', tmp_path)
    assert (names(found), found.problems) == (["Ana"], [])


def test_a_file_full_of_stray_quotes_is_read_in_linear_time(tmp_path: Path) -> None:
    rows = "".join(f'Ana;149{n:08d};"\n' for n in range(0, 5_001, 2))
    found = read(f"Nome;Telefone;Obs\n{rows}Bia;14998764402;ok\n", tmp_path)
    assert names(found)[-1] == "Bia"
    assert len(found.problems) + len(found.leads) <= 2_502


# Workbooks ------------------------------------------------------------------------------------------------------------


def test_a_workbook_is_read_whatever_it_is_called_and_its_numbers_are_whole(tmp_path: Path) -> None:
    rows: Rows = [
        ["Nome", "Telefone", "Valor", "CNPJ"],
        ["João", 14998764401.0, 1500.5, 11222333000181],
        ["Ana", 1498764402, None],
    ]
    found = read(workbook({"Leads": rows}), tmp_path)
    assert [(lead.client_name, lead.phone) for lead in found.leads] == [
        ("João", "5514998764401"),
        ("Ana", "551498764402"),
    ]
    assert str(found.leads[0].deal_value) == "1500.5"
    assert found.how == "workbook, sheet 'Leads'"


def test_of_several_sheets_the_first_with_leads_is_read_and_the_others_are_named(tmp_path: Path) -> None:
    sheets: dict[str, Rows] = {
        "Capa": [["Relatório de clientes"], ["2024"]],
        "Clientes": [["Relatório"], [None], ["Nome", "Celular"], ["João", "14 99876-4401"], ["Bia", "x"]],
        "Outros": [["Nome", "Celular"], ["Ana", "14 99876-4402"]],
    }
    found = read(workbook(sheets), tmp_path)
    assert names(found) == ["João"]
    assert [problem.line for problem in found.problems] == [5]
    assert "Only the sheet 'Clientes' was read, not 'Capa', 'Outros'." in found.notes
    assert "The header is on row 3; the rows before it were ignored." in found.notes


def test_a_workbook_with_a_number_that_lost_digits_leaves_the_row_out(tmp_path: Path) -> None:
    found = read(workbook({"Leads": [["Nome", "Telefone"], ["João", 14998764401.5], ["Ana", "5,51E+12"]]}), tmp_path)
    assert [(problem.line, problem.value) for problem in found.problems] == [(2, "14998764401.5"), (3, "5,51E+12")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (workbook({"Vazia": []}), "is a workbook without a filled sheet"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "is a workbook or an archive that cannot be opened"),
        (b"%PDF-1.7\n\xe2\xe3", "is a PDF, not a table"),
        (b"<!DOCTYPE html><table><tr><td>Nome", "is a web page, not a table"),
        (b"SQLite format 3\0" + bytes(range(256)) * 4, "is not a text file"),
    ],
)
def test_a_file_of_another_kind_is_named_correctly(content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(LeadsFileError, match=said):
        read(content, tmp_path)


# Mapping --------------------------------------------------------------------------------------------------------------

MAPPED = "Quem;Nome;Telefone;Telefone 2\nMaria;Padaria;1433334401;14998764401\nAna;Ótica;1433334402;\n"


def test_a_person_says_which_column_is_what(tmp_path: Path) -> None:
    found = read(MAPPED, tmp_path, name=["quem"], company=["Nome"], phone=["Telefone 2", "Telefone"])
    assert [(lead.client_name, lead.company, lead.phone) for lead in found.leads] == [
        ("Maria", "Padaria", "5514998764401"),
        ("Ana", "Ótica", "551433334402"),
    ]
    assert found.mapping[:3] == [
        ("name", "Quem", "Maria"),
        ("company", "Nome", "Padaria"),
        ("phone", "Telefone 2, else Telefone", "14998764401"),
    ]


def test_a_phone_that_a_person_mapped_is_the_only_one(tmp_path: Path) -> None:
    found = read(MAPPED, tmp_path, phone=["Telefone 2"])
    assert [lead.phone for lead in found.leads] == ["5514998764401"]
    assert [(problem.line, problem.column) for problem in found.problems] == [(3, "Telefone 2")]


def test_columns_may_be_given_by_number_and_names_joined(tmp_path: Path) -> None:
    found = read("Maria;Exemplo;14998764401\nAna;Souza;14998764402\n", tmp_path, name=["1", "2"], phone=["column 3"])
    assert names(found) == ["Maria Exemplo", "Ana Souza"]


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"telephone": ["Telefone"]}, "--map has no field 'telephone'. The fields are name, company, phone"),
        ({"phone": ["Celular"]}, r"The file has no column 'Celular' \(found: 'Quem, Nome"),
        ({"phone": ["9"]}, "The file has no column '9'"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(chosen: dict[str, list[str]], said: str, tmp_path: Path) -> None:
    with pytest.raises(LeadsFileError, match=said):
        read(MAPPED, tmp_path, **chosen)
