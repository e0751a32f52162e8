"""Leads from text files: columns, values, encodings, bad rows and unusable files."""

import csv
import io
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from campaign_pipeline.core.phone_reading import NotANumber, read_phone
from campaign_pipeline.demo.leads import TROUBLE_EVERY, make_leads
from campaign_pipeline.leads import BUSINESS_FIELDS, Lead, LeadsFileError, Problem, read_leads

WriteCsv = Callable[[str | bytes], Path]


@pytest.fixture
def write_csv(tmp_path: Path) -> WriteCsv:
    """Write a file of leads; text is encoded in UTF-8 with its line breaks unchanged."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "leads.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def read_leads_csv(path: str | Path) -> tuple[list[Lead], list[Problem]]:
    """The leads and problems alone."""
    read = read_leads(path)
    return read.leads, read.problems


def as_read(lead: Lead) -> Lead | None:
    """Return a sample lead as it is read from a file; None if its phone is invalid."""
    try:
        return replace(lead, phone=read_phone(lead.phone).digits)
    except NotANumber:
        return None


# ------------------------------------------------------------------------------------------------ reading: columns


def test_all_columns_of_a_lead_are_read(write_csv: WriteCsv) -> None:
    path = write_csv(
        "Nome,Empresa,Telefone,Valor,Prioridade,Etiquetas,Observações,CNPJ,e-mail,Cor preferida\n"
        'Ana Luíza,Padaria São José,(11) 98765-4321,"R$ 1.234,56",Alta,"vip; feira",Ligar às 14h,'
        "11222333000181,ana@padaria.example,azul\n"
    )
    assert read_leads_csv(path) == (
        [
            Lead(
                client_name="Ana Luíza",
                company="Padaria São José",
                phone="5511987654321",
                deal_value=Decimal("1234.56"),
                priority="high",
                tags=("vip", "feira"),
                notes="Ligar às 14h",
                cnpj="11.222.333/0001-81",
                custom_fields={"Email": "ana@padaria.example", "Cor preferida": "azul"},
            )
        ],
        [],
    )


def test_a_row_of_name_and_phone_is_a_lead_with_nothing_else(write_csv: WriteCsv) -> None:
    leads, problems = read_leads_csv(write_csv("name,phone,company,tags,notes,cnpj,x\nAna,11987654321\n"))
    assert leads == [Lead(client_name="Ana", phone="5511987654321")]
    assert leads[0].priority == "medium"
    assert problems == []


@pytest.mark.parametrize(
    ("heading", "field"),
    [
        ("NOME", "client_name"),
        ("  Nome   do Cliente ", "client_name"),
        ("Contato", "client_name"),
        ("client_name", "client_name"),
        ("Organização", "company"),
        ("organizacao", "company"),
        ("Company", "company"),
        ("TELEFONE", "phone"),
        ("Whats App", "phone"),
        ("Celular", "phone"),
        ("Número de telefone", "phone"),
        ("Phone Number", "phone"),
        ("Valor (R$)", "deal_value"),
        ("deal_value", "deal_value"),
        ("Valor do negocio", "deal_value"),
        ("PRIORIDADE", "priority"),
        ("Etiquetas", "tags"),
        ("observacoes", "notes"),
        ("Notes", "notes"),
        ("C.N.P.J.", "cnpj"),
    ],
)
def test_headings_are_known_whatever_their_case_accents_and_spaces(
    write_csv: WriteCsv, heading: str, field: str
) -> None:
    values = {
        "client_name": ("Ana", "Ana"),
        "company": ("Sol", "Sol"),
        "phone": ("11987654321", "5511987654321"),
        "deal_value": ("10", Decimal(10)),
        "priority": ("baixa", "low"),
        "tags": ("a", ("a",)),
        "notes": ("n", "n"),
        "cnpj": ("11.222.333/0001-81", "11.222.333/0001-81"),
    }
    headings = {"client_name": "nome", "phone": "telefone"} | {field: heading}
    path = write_csv(";".join(headings.values()) + "\n" + ";".join(values[name][0] for name in headings) + "\n")
    leads, problems = read_leads_csv(path)
    assert problems == []
    assert getattr(leads[0], field) == values[field][1]
    assert leads[0].custom_fields == {}


def test_business_fields_get_the_crm_s_own_name(write_csv: WriteCsv) -> None:
    headings = [name.upper().replace("Ã", "A").replace("Ç", "C") for name in BUSINESS_FIELDS]
    path = write_csv("nome;telefone;" + ";".join(headings) + "\nAna;11987654321" + ";x" * len(headings))
    assert read_leads_csv(path)[0][0].custom_fields == dict.fromkeys(BUSINESS_FIELDS, "x")


def test_a_heading_that_comes_twice_keeps_both_values(write_csv: WriteCsv) -> None:
    path = write_csv("nome;telefone;Cor;Cor;nome\nAna;11987654321;azul;verde;Aninha\n")
    assert read_leads_csv(path)[0][0].custom_fields == {"Cor": "azul", "Cor (2)": "verde", "nome": "Aninha"}


def test_the_number_for_whatsapp_is_preferred_and_the_other_is_kept(write_csv: WriteCsv) -> None:
    path = write_csv("nome;telefone;whatsapp\nAna;1133334444;11987654321\n")
    lead = read_leads_csv(path)[0][0]
    assert (lead.phone, lead.custom_fields) == ("5511987654321", {"telefone": "1133334444"})


@pytest.mark.parametrize("whatsapp", ["", "sim"])
def test_where_the_whatsapp_column_holds_no_number_another_column_does(write_csv: WriteCsv, whatsapp: str) -> None:
    leads, problems = read_leads_csv(write_csv(f"nome;telefone;whatsapp\nAna;1133334444;{whatsapp}\n"))
    assert problems == []
    assert leads[0].phone == "551133334444"
    assert leads[0].custom_fields == ({"whatsapp": whatsapp} if whatsapp else {})


# ----------------------------------------------------------------------------------- reading: encoding and separator


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "latin-1", "utf-16"])
def test_accents_survive_each_encoding(write_csv: WriteCsv, encoding: str) -> None:
    leads, _ = read_leads_csv(write_csv("nome;telefone\nJoão Conceição;11987654321\n".encode(encoding)))
    assert leads[0].client_name == "João Conceição"


def test_a_byte_that_windows_1252_leaves_undefined_does_not_stop_the_file(write_csv: WriteCsv) -> None:
    leads, _ = read_leads_csv(write_csv(b"nome;telefone;nota\nJo\xe3o;11987654321;\x81x\n"))
    assert leads[0].client_name == "João"


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_each_separator_and_line_break_is_found(write_csv: WriteCsv, separator: str, line_break: str) -> None:
    rows = ["nome T telefone T Endereço, bairro; cidade | UF".replace(" T ", separator)]
    if separator in ",;|":
        rows = [f'nome{separator}telefone{separator}"Endereço, bairro; cidade | UF"']
    rows.append(f'Ana{separator}11987654321{separator}"Rua A, 1; Centro | SP"')
    leads, problems = read_leads_csv(write_csv(line_break.join(rows)))
    assert problems == []
    assert leads[0].custom_fields == {"Endereço, bairro; cidade | UF": "Rua A, 1; Centro | SP"}


def test_a_quoted_cell_may_follow_a_space(write_csv: WriteCsv) -> None:
    leads, problems = read_leads_csv(write_csv('nome, telefone, tags\nAna, 11987654321, "vip, site"\n'))
    assert problems == []
    assert leads[0].tags == ("vip", "site")


def test_an_empty_first_cell_of_a_tab_separated_row_stays_a_cell(write_csv: WriteCsv) -> None:
    leads, _ = read_leads_csv(write_csv("empresa\tnome\ttelefone\n\tAna\t11987654321\n"))
    assert leads == [Lead(client_name="Ana", phone="5511987654321")]


def test_line_breaks_within_a_note_become_plain_ones(write_csv: WriteCsv) -> None:
    leads, _ = read_leads_csv(write_csv('nome;telefone;obs\r\nAna;11987654321;"a\r\nb"\r\n'))
    assert leads[0].notes == "a\nb"


def test_excel_s_separator_hint_is_not_taken_for_the_header(write_csv: WriteCsv) -> None:
    leads, problems = read_leads_csv(write_csv("sep=;\r\nnome;telefone\r\nAna;11987654321\r\nBia;x\r\n"))
    assert [lead.client_name for lead in leads] == ["Ana"]
    assert [problem.line for problem in problems] == [4]


# ------------------------------------------------------------------------------------------------- reading: values


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("R$ 1.234,56", "1234.56"),
        ("R$\u00a01.234,56", "1234.56"),
        ("r$1.234.567,8", "1234567.8"),
        ("BRL 12", "12"),
        ("1234.56", "1234.56"),
        ("1234.5", "1234.5"),
        ("1.234", "1234"),
        ("1.234.567", "1234567"),
        ("1 234,56", "1234.56"),
        ("1,234.56", "1234.56"),
        ("1,234,567", "1234567"),
        ("0,99", "0.99"),
        ("0.99", "0.99"),
        ("1500", "1500"),
        ("0", "0"),
    ],
)
def test_an_amount_is_read_in_brazilian_and_plain_notation(write_csv: WriteCsv, text: str, amount: str) -> None:
    leads, problems = read_leads_csv(write_csv(f"nome;telefone;valor\nAna;11987654321;{text}\n"))
    assert problems == []
    assert leads[0].deal_value == Decimal(amount)


@pytest.mark.parametrize("text", ["", "R$ -", "R$", "-", "NaN", "null"])
def test_an_amount_that_shows_nothing_is_none(write_csv: WriteCsv, text: str) -> None:
    leads, problems = read_leads_csv(write_csv(f"nome;telefone;valor\nAna;11987654321;{text}\n"))
    assert (leads[0].deal_value, problems) == (None, [])


@pytest.mark.parametrize(
    "text", ["dez mil", "10k", "1,234", "0.125", "0,125", "1.23.4", "12.34,5", "-5", "inf", "1e5", "1_000", "١٢"]
)
def test_an_amount_that_is_none_or_ambiguous_is_reported(write_csv: WriteCsv, text: str) -> None:
    leads, problems = read_leads_csv(write_csv(f"nome;telefone;Valor\nAna;11987654321;{text}\n"))
    assert leads == []
    assert problems == [
        Problem(2, "Valor", text, f"Valor '{text}' is not an amount of reais: write it like R$ 1.234,56 or 1234.56.")
    ]


@settings(deadline=None)
@given(st.decimals(0, 10**12, places=2))
@example(Decimal("1000.00"))
def test_an_amount_in_brazilian_notation_comes_back_as_it_was(amount: Decimal) -> None:
    text = f"R$ {amount:,}".translate(str.maketrans(",.", ".,"))
    leads, _ = read_bytes(f"nome;telefone;valor\nAna;11987654321;{text}".encode())
    assert leads[0].deal_value == amount


@pytest.mark.parametrize(
    "phone",
    [
        "(11) 98765-4321",
        "+55 11 987654321",
        "11987654321",
        "5511987654321",
        "0055 11 98765-4321",
        "011 98765-4321",
        "0 15 11 98765-4321",
        "+55 (011) 98765.4321",
        "(11) 3333-4444",
        "11 8765-4321",
        "55 99876-5432",
        "+351 912 345 678",
        "\u202a+55 11 98765\u20114321\u202c",
        "１１９８７６５４３２１",
        "11987654321.0",
        "'11987654321",
        '="11987654321"',
    ],
)
def test_a_phone_is_taken_in_each_way_of_writing(write_csv: WriteCsv, phone: str) -> None:
    leads, problems = read_leads_csv(write_csv(f"nome;telefone\nAna;{phone}\n"))
    assert problems == []
    assert leads[0].phone == read_phone(phone).digits


@pytest.mark.parametrize(
    "phone",
    [
        *("98765-4321", "11 9876O-4321", "(11) 9XXXX-4321", "ver com o sócio", "20 98765-4321", "11 88765-4321"),
        *("11987654321 / 11912345678", "5,51199E+12", "+55 11 9876-432", "+1", "0", "1" * 40),
    ],
)
def test_values_other_than_one_number_with_area_code_are_reported(write_csv: WriteCsv, phone: str) -> None:
    leads, problems = read_leads_csv(write_csv(f"nome;Telefone\nAna;{phone}\nBia;11987654321\n"))
    assert [lead.client_name for lead in leads] == ["Bia"]
    assert [(problem.line, problem.column, problem.value) for problem in problems] == [(2, "Telefone", phone)]
    assert problems[0].message.startswith(f"Telefone {phone!r} ")
    assert problems[0].message.endswith(": write one like (11) 98765-4321.")


@pytest.mark.parametrize("again", ["11987654321", "+55 (11) 98765-4321", "011 98765 4321", "11 8765-4321"])
def test_a_phone_that_comes_again_is_reported_with_its_first_line(write_csv: WriteCsv, again: str) -> None:
    leads, problems = read_leads_csv(write_csv(f"nome;telefone\nAna;(11) 98765-4321\nBia;{again}\n"))
    assert [lead.client_name for lead in leads] == ["Ana"]
    message = f"telefone '{again}' is also the number of line 2: keep each number on one line only."
    assert problems == [Problem(3, "telefone", again, message)]


def test_like_numbers_of_two_area_codes_are_two_numbers(write_csv: WriteCsv) -> None:
    leads, problems = read_leads_csv(write_csv("nome;telefone\nAna;11987654321\nBia;21987654321\nCau;1133334444\n"))
    assert (len(leads), problems) == (3, [])


@pytest.mark.parametrize(
    "cnpj",
    ["11.222.333/0001-81", "11444777000161", "191", "00.000.000/0001-91", "12.ABC.345/01DE-35", "12abc34501de35"],
)
def test_a_right_cnpj_is_taken_and_written_in_full(write_csv: WriteCsv, cnpj: str) -> None:
    leads, problems = read_leads_csv(write_csv(f"nome;telefone;cnpj\nAna;11987654321;{cnpj}\n"))
    assert problems == []
    assert re.fullmatch(r"[0-9A-Z]{2}\.[0-9A-Z]{3}\.[0-9A-Z]{3}/[0-9A-Z]{4}-\d\d", leads[0].cnpj or "")


@pytest.mark.parametrize(
    ("cnpj", "fault"),
    [
        ("11.222.333/0001-82", "has wrong check digits"),
        ("11.222.333/0001-91", "has wrong check digits"),
        ("12.ABC.345/01DE-36", "has wrong check digits"),
        ("00.000.000/0000-00", "is not a CNPJ"),
        ("11.222.333/0001-811", "is not a CNPJ"),
        ("12.ABC.345/01DE-3X", "is not a CNPJ"),
        ("isento", "is not a CNPJ"),
    ],
)
def test_a_wrong_cnpj_is_reported(write_csv: WriteCsv, cnpj: str, fault: str) -> None:
    leads, problems = read_leads_csv(write_csv(f"nome;telefone;CNPJ\nAna;11987654321;{cnpj}\n"))
    assert leads == []
    assert [(problem.column, problem.value) for problem in problems] == [("CNPJ", cnpj)]
    assert problems[0].message.startswith(f"CNPJ '{cnpj}' {fault}")
    assert "11.222.333/0001-81" in problems[0].message


@pytest.mark.parametrize(
    ("word", "priority"),
    [("", "medium"), ("MEDIA", "medium"), ("Média", "medium"), ("urgente", "high"), ("Low", "low")],
)
def test_a_priority_is_known_in_both_languages(write_csv: WriteCsv, word: str, priority: str) -> None:
    assert read_leads_csv(write_csv(f"nome;telefone;prioridade\nAna;11987654321;{word}"))[0][0].priority == priority


def test_an_unknown_priority_is_reported(write_csv: WriteCsv) -> None:
    _, problems = read_leads_csv(write_csv("nome;telefone;prioridade\nAna;11987654321;talvez"))
    message = "prioridade 'talvez' is not a priority: write baixa, média or alta (low, medium or high)."
    assert problems == [Problem(2, "prioridade", "talvez", message)]


@pytest.mark.parametrize("cell", ["vip;feira 2024;site", "vip, feira 2024 ,site", "vip|feira 2024||site|vip"])
def test_tags_are_separated_by_comma_semicolon_or_bar_and_come_once(write_csv: WriteCsv, cell: str) -> None:
    leads, _ = read_leads_csv(write_csv(f'nome,telefone,tags\nAna,11987654321,"{cell}"\n'))
    assert leads[0].tags == ("vip", "feira 2024", "site")


def test_an_emoji_of_several_characters_stays_whole(write_csv: WriteCsv) -> None:
    leads, _ = read_leads_csv(write_csv("nome;telefone\nDra. Ana 👩‍⚕️;11987654321\n"))
    assert leads[0].client_name == "Dra. Ana 👩‍⚕️"


# ------------------------------------------------------------------------------------------------ reading: bad rows


def test_a_bad_row_is_reported_for_each_of_its_faults_and_stops_no_other(write_csv: WriteCsv) -> None:
    leads, problems = read_leads_csv(write_csv("Nome;Fone;Valor\nAna;11987654321;1\n;;caro\nBia;21987654321;2\n"))
    assert [lead.client_name for lead in leads] == ["Ana", "Bia"]
    assert [(problem.line, problem.column, problem.value) for problem in problems] == [
        (3, "Nome", ""),
        (3, "Fone", ""),
        (3, "Valor", "caro"),
    ]
    assert problems[0].message == "Nome is empty: write the name of the person, such as Maria de Souza."
    assert problems[1].message == "Fone is empty: write a number with its area code, such as (11) 98765-4321."


def test_lines_are_counted_through_quoted_line_breaks_and_blank_lines(write_csv: WriteCsv) -> None:
    path = write_csv(
        "\nnome;telefone;obs\n"  # header on line 2
        'Ana;11987654321;"um\ndois\n\nquatro"\n'  # lines 3 to 6
        "\n"
        "  ;;  \n"
        'Bia;errado;"a\r\nb"\n'  # lines 9 and 10
        "Cau;pior;x\n"
    )
    leads, problems = read_leads_csv(path)
    assert [lead.notes for lead in leads] == ["um\ndois\n\nquatro"]
    assert [(problem.line, problem.value) for problem in problems] == [(9, "errado"), (11, "pior")]


def test_a_line_separator_within_a_note_is_not_a_line(write_csv: WriteCsv) -> None:
    _, problems = read_leads_csv(write_csv("nome;telefone;obs\nAna;11987654321;a\u2028b\x0bc\nBia;x;y\n"))
    assert [problem.line for problem in problems] == [3]


def test_a_row_with_more_cells_than_headings_is_reported(write_csv: WriteCsv) -> None:
    leads, problems = read_leads_csv(write_csv("nome,telefone\nAna,11987654321,,,Rua A\nBia,21987654321,,,\n"))
    assert [lead.client_name for lead in leads] == ["Bia"]  # empty cells at the end are no harm
    message = (
        "column 5 'Rua A' has no heading: the header has 2 columns. Add a heading, or quote the cell that contains ','."
    )
    assert problems == [Problem(2, "column 5", "Rua A", message)]


def test_a_value_under_an_empty_heading_is_kept_under_its_place(write_csv: WriteCsv) -> None:
    leads, problems = read_leads_csv(write_csv("nome;;telefone\nAna;x;11987654321\n"))
    assert (leads[0].custom_fields, problems) == ({"column 2": "x"}, [])


@pytest.mark.parametrize(
    "broken",
    ['"Ana;11912345678', '"Ana" Maria;11912345678', '"Ana;"11912345678"'],
    ids=["never closed", "text after the quote", "closed too late"],
)
@pytest.mark.parametrize("after", ["Bia;21987654321\n", '"Bia";"21987654321"\n'])
def test_a_stray_quote_costs_its_own_row_only(write_csv: WriteCsv, broken: str, after: str) -> None:
    leads, problems = read_leads_csv(write_csv(f"nome;telefone\nCau;31987654321\n{broken}\n{after}"))
    assert [lead.client_name for lead in leads] == ["Cau", "Bia"]
    assert [(problem.line, problem.column, problem.value) for problem in problems] == [(3, "", broken)]
    assert re.search("is not well-formed CSV|opens a quote that is never closed", problems[0].message)
    assert "close every quote" in problems[0].message


def test_a_message_shows_a_long_value_in_part_and_on_one_line(write_csv: WriteCsv) -> None:
    long = "muito\n" * 500
    _, problems = read_leads_csv(write_csv(f'nome;telefone\nAna;"{long}"\n'))
    assert problems[0].value == long.strip()
    assert len(problems[0].message) < 160
    assert "\n" not in problems[0].message
    assert "…" in problems[0].message


# ----------------------------------------------------------------------------------------- reading: unusable files


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LeadsFileError, match=r"nada\.csv does not exist: give the path of a CSV or XLSX file\.$"):
        read_leads_csv(tmp_path / "nada.csv")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LeadsFileError, match="cannot be read: "):
        read_leads_csv(tmp_path)


def test_a_path_may_be_a_plain_string(write_csv: WriteCsv) -> None:
    assert len(read_leads_csv(str(write_csv("nome;telefone\nAna;11987654321")))[0]) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b" \r\n\r\n ", "is empty"),
        (b"nome;telefone\r\n", "has a header but no rows"),
        (b"nome;telefone\r\n;\r\n\r\n", "has a header but no rows"),
        (b"PK\x03\x04\x14\x00", "is a workbook or an archive that cannot be opened"),
        (b"nome;telefone\nAna\0;1", "is not a text file"),
        (b"\xff\xfen\x00o", "is not a text file"),
        (b'\n"nome;telefone\nAna;11987654321', "line 2: the header is not well-formed CSV"),
        (b"sep=;", "no column for the name"),
        (b"telefone;cidade\n11987654321;Santos", "has no column for the name: use the heading Nome"),
        (b"11987654321\n11987654322", "has no header and no column for the name: use the heading Nome"),
        (b"nome;cidade\nAna;Santos", "has no column for the phone: use the heading Telefone"),
        (b"Ana;Santos;11987654321", "has no header and no column for the name"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(
    write_csv: WriteCsv, content: bytes, reason: str
) -> None:
    with pytest.raises(LeadsFileError) as caught:
        read_leads_csv(write_csv(content))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_column_is_reported_with_the_columns_found(write_csv: WriteCsv) -> None:
    with pytest.raises(LeadsFileError, match=r"\(found: 'nome, cidade, uf'\)"):
        read_leads_csv(write_csv("nome|cidade|uf\nAna|Santos|SP"))


# ---------------------------------------------------------------------------------------------- reading: properties


def read_bytes(content: bytes) -> tuple[list[Lead], list[Problem]]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "leads.csv")
        path.write_bytes(content)
        return read_leads_csv(path)


def as_csv(leads: Sequence[Lead], separator: str, line_break: str) -> str:
    names = sorted({name for lead in leads for name in lead.custom_fields})
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator, lineterminator=line_break)
    writer.writerow(["Nome", "Empresa", "Telefone", "Valor", "Prioridade", "Tags", "Observações", "CNPJ", *names])
    for lead in leads:
        custom = [lead.custom_fields.get(name) for name in names]
        head = [lead.client_name, lead.company, lead.phone, lead.deal_value, lead.priority]
        writer.writerow([*head, "|".join(lead.tags), lead.notes, lead.cnpj, *custom])
    return out.getvalue()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from(",;\t|"), st.sampled_from(["\n", "\r\n"]))
def test_made_up_leads_come_back_from_a_csv_as_they_were(seed: int, separator: str, line_break: str) -> None:
    made = make_leads(4 * TROUBLE_EVERY, seed)
    leads, problems = read_bytes(as_csv(made, separator, line_break).encode())
    assert leads == [lead for lead in map(as_read, made) if lead is not None]
    assert [problem.column for problem in problems] == ["Telefone", "Telefone"]


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet='nometlfax;,|\t"\n\r19 R$.=\u00e3', max_size=200).map(str.encode))
@example(b'nome;telefone\n"')
@example(b"nome;telefone\n=;'\n")
@example(b"nome;telefone;valor;cnpj\na;1;\xb2;\xbd")
def test_any_file_is_read_or_refused(content: bytes) -> None:
    for prefix in (b"", b"nome;telefone;valor;cnpj;tags\n"):
        try:
            leads, problems = read_bytes(prefix + content)
        except LeadsFileError:
            continue
        assert leads or problems
        lines = len(re.findall(rb"\r\n|\r|\n", prefix + content)) + 1
        assert all(1 < problem.line <= lines and problem.message for problem in problems)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["x", '"', '"x', "11 9", "São;Luís", '"a\nb"', "", "a;b;c;d"])),
        max_size=12,
    )
)
def test_good_rows_are_read_whatever_precedes_them(rubbish: list[tuple[int, str]]) -> None:
    bad = "".join(f"{' ' * pad}{text}\n" for pad, text in rubbish)
    leads, _ = read_bytes(f"nome;telefone\n{bad}Bia;21987654321\n".encode())
    assert leads[-1] == Lead(client_name="Bia", phone="5521987654321")
