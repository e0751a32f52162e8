"""Real exports of lead tools, CRMs and spreadsheets, and the result of each."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from campaign_pipeline.leads import LeadsFile, LeadsFileError, read_leads

CASES = Path(__file__).parents[1] / "cases" / "leads"


@dataclass(frozen=True)
class Right:
    """The expected result for a file: the leads as (name, company, phone), more fields of the first, skipped lines."""

    leads: Sequence[tuple[str, str | None, str]]
    first: dict[str, Any] = field(default_factory=dict)
    custom: dict[str, str] = field(default_factory=dict)  # among the first lead's custom fields
    left_out: Sequence[int] = ()
    how: str = ""
    tool: str | None = None
    note: str = ""


MARIA, MARIA_PHONE = "Maria Exemplo", "5514998764401"
PADARIA = "Padaria São Bento"

RIGHT = {
    "01-gosom-google-maps.csv": Right(
        [(PADARIA, PADARIA, "551433334401"), ("Ótica Aurora", "Ótica Aurora", "5514998764402")],
        custom={
            "Categoria": "Padaria",
            "Rating": "4.6",
            "Avaliações": "73",
            "Website Principal": "https://padaria.example",
        },
        tool="Google Maps Scraper (gosom)",
    ),
    "02-outscraper.csv": Right(
        [(PADARIA, PADARIA, MARIA_PHONE), ("Ótica Aurora", "Ótica Aurora", "5514998764402")],
        custom={"Email": "contato@padaria.example", "Endereço": "R. das Acácias, 10", "phone": "+55 14 3333-4401"},
        tool="Outscraper",
    ),
    "04-rfb-estabelecimentos.csv": Right(
        [
            ("PADARIA SÃO BENTO", "PADARIA SÃO BENTO", "551499876440"),
            ("OTICA AURORA", "OTICA AURORA", "5514998764402"),
        ],
        first={"cnpj": "11.222.333/0001-81"},
        custom={"Email": "contato@padaria.example", "CNAE Principal": "4721102"},
        how="Windows-1252",
        tool="Receita Federal (estabelecimentos)",
    ),
    "05-casa-dos-dados.csv": Right(
        [("PADARIA SÃO BENTO", "PADARIA SÃO BENTO", "551433334401")],
        first={"cnpj": "11.222.333/0001-81"},
        custom={"Razão Social": "PADARIA SAO BENTO LTDA", "quadro_societario_0_nome": "MARIA EXEMPLO"},
        tool="Casa dos Dados",
    ),
    "06-rd-station.csv": Right(
        [(MARIA, PADARIA, MARIA_PHONE), ("Ótica Aurora", "Ótica Aurora", "5514998764402")],
        first={"tags": ("padaria", "evento")},
        custom={"Telefone": "(14) 3333-4401", "Bio": 'Gosta de "pão"\ne de café'},
        tool="RD Station Marketing",
        note="do not want messages",
    ),
    "07-hubspot.csv": Right(
        [(MARIA, None, MARIA_PHONE)],
        custom={"Email": "maria@exemplo.example"},
        tool="HubSpot",
        note="'Unsubscribed from all email' says that 1 of",
    ),
    "09-kommo.csv": Right(
        [(MARIA, PADARIA, MARIA_PHONE)],
        first={"deal_value": Decimal(1500), "tags": ("padaria", "evento")},
        custom={"Nome do lead": "Negócio 1", "Email": "maria@exemplo.example"},
        tool="Kommo",
    ),
    "10-bitrix24.csv": Right(
        [(MARIA, PADARIA, MARIA_PHONE)],
        first={"deal_value": Decimal("1500.00"), "notes": "Ligar"},
        custom={"Work Phone": "+551433334401, +551433334499"},
        tool="Bitrix24",
    ),
    "12-google-contacts-old.csv": Right([(MARIA, PADARIA, MARIA_PHONE)], how="UTF-16", tool="Google Contacts"),
    "14-meta-lead-ads.csv": Right(
        [(MARIA, None, MARIA_PHONE), ("José Exemplo", None, "5514998764402")],
        custom={"campaign_name": "Campanha", "qual_o_seu_segmento?": "padaria"},
        how="separated by tabs",
        tool="Meta lead ads",
    ),
    "16-excel-ptbr.csv": Right(
        [("João “Jão” d’Ávila", "Padaria – São Bento", MARIA_PHONE), (MARIA, "Ótica", "5514998764402")],
        first={"deal_value": Decimal("1234.56"), "notes": "“ótimo” cliente…", "cnpj": "11.222.333/0001-81"},
        how="Windows-1252",
    ),
    "17-excel-utf8-bom.csv": Right([("João Exemplo", PADARIA, MARIA_PHONE)], how="UTF-8 with a byte order mark"),
    "19-utf16-no-bom.csv": Right([("João", None, MARIA_PHONE)], note="The file is UTF-16 without a byte order mark"),
    "21-mac-roman.csv": Right([("João Conceição", PADARIA, MARIA_PHONE)], note="read as Mac Roman"),
    "22-utf8-with-one-latin1-byte.csv": Right(
        [(f"João Conceição {n}", "Ótica São José", f"55149987644{n:02}") for n in range(20)], left_out=[22], how="UTF-8"
    ),
    "24-scientific.csv": Right([("Ana", None, "5514998764403")], left_out=[2, 3]),
    "25-dot-zero.csv": Right(
        [
            ("Fixo com .0", None, "551433334401"),
            ("Celular antigo com .0", None, "551498764402"),
            ("Celular com .0", None, "5514998764403"),
            ("Com DDI e .0", None, "5514998764404"),
            ("Fixo com DDI e .0", None, "551433334405"),
        ]
    ),
    "27-title-row.csv": Right([(MARIA, "Padaria", MARIA_PHONE)], note="The header is on line 4"),
    "28-duplicate-and-empty-headers.csv": Right(
        [(MARIA, None, MARIA_PHONE), ("José", None, "5514998764402")],
        custom={"Email": "a@exemplo.example", "Email (2)": "b@exemplo.example"},
    ),
    "31-quotes-newlines.csv": Right(
        [(MARIA, None, MARIA_PHONE), ("Ana", None, "5514998764403")],
        first={"notes": 'linha 1\nlinha "2"\nlinha 3'},
        left_out=[5],
    ),
    "38-contato-is-phone.csv": Right([(PADARIA, None, MARIA_PHONE)], note="'Contato' holds phone numbers"),
    "40-nome-sobrenome.csv": Right([(MARIA, None, MARIA_PHONE)]),
    "41-nulls.csv": Right([], left_out=[2, 3, 4]),
}

REFUSED = {
    "29-emails-only.csv": "no column for the phone (e-mail addresses alone are not enough)",
    "32-xlsx-renamed.csv": "is a workbook or an archive that cannot be opened",
    "34-json.csv": "is JSON, not a table",
    "35-vcard.vcf": "is a vCard file, not a table",
    "37-single-column.csv": "has no header and no column for the name",
}


def assert_right(read: LeadsFile, right: Right) -> None:
    assert [(lead.client_name, lead.company, lead.phone) for lead in read.leads] == list(right.leads)
    assert sorted({problem.line for problem in read.problems}) == list(right.left_out)
    if read.leads:
        first = read.leads[0]
        assert {name: getattr(first, name) for name in right.first} == right.first
        assert {name: first.custom_fields.get(name) for name in right.custom} == right.custom
    assert right.how in read.how
    assert right.tool is None or read.tool == right.tool
    assert right.note in " ".join(read.notes)


def test_every_kept_file_has_its_right_values() -> None:
    assert {path.name for path in CASES.iterdir()} == RIGHT.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", RIGHT)
def test_a_kept_export_is_read_rightly(name: str) -> None:
    assert_right(read_leads(CASES / name), RIGHT[name])


@pytest.mark.parametrize("name", REFUSED)
def test_a_kept_file_that_is_no_table_of_leads_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(LeadsFileError) as caught:
        read_leads(CASES / name)
    assert REFUSED[name] in str(caught.value)
    assert "\n" not in str(caught.value)


# Forty more formats ---------------------------------------------------------------------------------------------------

TABLES: dict[str, tuple[Sequence[Sequence[str]], Right]] = {
    "Pipedrive people": (
        [
            [
                "Person - Name",
                "Person - Label",
                "Person - Organization",
                "Person - Email - Work",
                "Person - Phone - Work",
                "Person - Phone - Mobile",
                "Person - Owner",
            ],
            ["Maria Exemplo", "Quente", "Padaria", "m@x.example", "(14) 3333-4401", "(14) 99876-4401", "Vendedor"],
        ],
        Right([(MARIA, "Padaria", MARIA_PHONE)], first={"tags": ("Quente",)}, tool="Pipedrive"),
    ),
    "Pipedrive people, no mobile": (
        [
            ["Person - Name", "Person - Phone - Work", "Person - Phone - Mobile"],
            ["Maria Exemplo", "+55 14 3333-4401", ""],
        ],
        Right([(MARIA, None, "551433334401")], tool="Pipedrive"),
    ),
    "Pipedrive deals in Portuguese": (
        [
            [
                "Negócio - Título",
                "Negócio - Valor",
                "Pessoa - Nome",
                "Pessoa - Telefone - Celular",
                "Organização - Nome",
                "Pessoa - E-mail - Trabalho",
            ],
            ["Negócio Padaria", "1500,00", "Maria Exemplo", "14998764401", "Padaria", "m@x.example"],
        ],
        Right([(MARIA, "Padaria", MARIA_PHONE)], first={"deal_value": Decimal(1500)}, custom={"Email": "m@x.example"}),
    ),
    "HubSpot with an empty mobile number": (
        [
            ["Record ID", "First Name", "Last Name", "Company Name", "Mobile Phone Number", "Phone Number", "Email"],
            ["1", "Maria", "Exemplo", "Padaria", "", "+55 14 3333-4401", "m@x.example"],
        ],
        Right([(MARIA, "Padaria", "551433334401")], tool="HubSpot"),
    ),
    "Google Contacts today": (
        [
            [
                "First Name",
                "Middle Name",
                "Last Name",
                "Phonetic First Name",
                "Organization Name",
                "Labels",
                "E-mail 1 - Label",
                "E-mail 1 - Value",
                "Phone 1 - Label",
                "Phone 1 - Value",
                "Phone 2 - Value",
            ],
            [
                "Maria",
                "de",
                "Exemplo",
                "",
                "Padaria",
                "* myContacts",
                "* ",
                "m@x.example",
                "Work",
                "+55 14 3333-4401",
                "+55 14 99876-4401",
            ],
        ],
        Right([("Maria de Exemplo", "Padaria", MARIA_PHONE)], custom={"Email": "m@x.example"}, tool="Google Contacts"),
    ),
    "Google Contacts, two numbers in a cell": (
        [
            ["Name", "Given Name", "Family Name", "Phone 1 - Type", "Phone 1 - Value"],
            ["Maria Exemplo", "Maria", "Exemplo", "Mobile", "+55 14 99876-4401 ::: +55 14 3333-4401"],
        ],
        Right([(MARIA, None, MARIA_PHONE)], custom={"Telefone": "551433334401"}),
    ),
    "Outlook": (
        [
            [
                "Title",
                "First Name",
                "Middle Name",
                "Last Name",
                "Company",
                "Business Phone",
                "Home Phone",
                "Mobile Phone",
                "E-mail Address",
                "Notes",
            ],
            ["Sra.", "Maria", "", "Exemplo", "Padaria", "(14) 3333-4401", "", "(14) 99876-4401", "m@x.example", "oi"],
        ],
        Right([(MARIA, "Padaria", MARIA_PHONE)], first={"notes": "oi"}, custom={"Title": "Sra."}, tool="Outlook"),
    ),
    "Outlook in Portuguese": (
        [
            ["Nome", "Sobrenome", "Empresa", "Telefone comercial", "Telefone celular", "Endereço de email"],
            ["Maria", "Exemplo", "Padaria", "(14) 3333-4401", "(14) 99876-4401", "m@x.example"],
        ],
        Right([(MARIA, "Padaria", MARIA_PHONE)], custom={"Email": "m@x.example"}, tool="Outlook"),
    ),
    "Meta lead ads, comma": (
        [
            ["id", "created_time", "ad_id", "form_id", "form_name", "nome_completo", "número_de_telefone", "e-mail"],
            ["l:1", "2024-03-01", "ag:1", "f:1", "Form", "Maria Exemplo", "p:+5514998764401", "m@x.example"],
        ],
        Right([(MARIA, None, MARIA_PHONE)], tool="Meta lead ads"),
    ),
    "Mailchimp": (
        [
            ["Email Address", "First Name", "Last Name", "Phone Number", "MEMBER_RATING", "OPTIN_TIME", "TAGS"],
            ["m@x.example", "Maria", "Exemplo", "14998764401", "2", "2024-03-01 10:00:00", '"padaria","evento"'],
        ],
        Right([(MARIA, None, MARIA_PHONE)], custom={"Email": "m@x.example"}, tool="Mailchimp"),
    ),
    "ActiveCampaign": (
        [
            ["Contact ID", "First Name", "Last Name", "Email", "Phone", "Account", "Tags"],
            ["1", "Maria", "Exemplo", "m@x.example", "+5514998764401", "Padaria", "quente,evento"],
        ],
        Right([(MARIA, "Padaria", MARIA_PHONE)], first={"tags": ("quente", "evento")}, tool="ActiveCampaign"),
    ),
    "Zoho CRM leads": (
        [
            [
                "Record Id",
                "Lead Owner",
                "First Name",
                "Last Name",
                "Company",
                "Phone",
                "Mobile",
                "Email",
                "Description",
            ],
            ["zcrm_1", "Vendedor", "Maria", "Exemplo", "Padaria", "1433334401", "14998764401", "m@x.example", "oi"],
        ],
        Right([(MARIA, "Padaria", MARIA_PHONE)], first={"notes": "oi"}, tool="Zoho CRM"),
    ),
    "Salesforce report": (
        [
            ["Lead Owner", "First Name", "Last Name", "Title", "Company / Account", "Phone", "Mobile", "Email"],
            ["Vendedor", "Maria", "Exemplo", "Sócia", "Padaria", "(14) 3333-4401", "(14) 99876-4401", "m@x.example"],
        ],
        Right([(MARIA, "Padaria", MARIA_PHONE)], custom={"Title": "Sócia"}, tool="Salesforce"),
    ),
    "Salesforce data loader": (
        [
            ["Id", "LastName", "FirstName", "Company", "MobilePhone", "LeadSource"],
            ["00Q1", "Exemplo", "Maria", "Padaria", "+5514998764401", "Web"],
        ],
        Right([(MARIA, "Padaria", MARIA_PHONE)], tool="Salesforce"),
    ),
    "Kommo in English": (
        [
            ["ID", "Lead name", "Full name", "Company", "Responsible", "Work phone", "Mobile phone", "Sale"],
            ["1", "Deal 1", "Maria Exemplo", "Padaria", "Vendedor", "'+551433334401", "", "1500"],
        ],
        Right([(MARIA, "Padaria", "551433334401")], first={"deal_value": Decimal(1500)}, tool="Kommo"),
    ),
    "Bitrix24 in Portuguese": (
        [
            ["ID", "Nome do Lead", "Saudação", "Primeiro nome", "Sobrenome", "Nome da empresa", "Celular", "Total"],
            ["1", "Formulário", "", "Maria", "Exemplo", "Padaria", "+5514998764401", "1500.00"],
        ],
        Right([(MARIA, "Padaria", MARIA_PHONE)], tool="Bitrix24"),
    ),
    "RD Station CRM": (
        [
            ["Nome da negociação", "Etapa", "Empresa", "Contatos", "Telefone", "Valor"],
            ["Negócio 1", "Contato feito", "Padaria", "Maria Exemplo", "(14) 99876-4401", "R$ 1.500,00"],
        ],
        Right([(MARIA, "Padaria", MARIA_PHONE)], first={"deal_value": Decimal(1500)}, tool="RD Station CRM"),
    ),
    "Apify Google Maps": (
        [
            ["title", "totalScore", "reviewsCount", "street", "city", "phone", "website", "categoryName", "url"],
            [
                "Padaria São Bento",
                "4.6",
                "73",
                "R. A",
                "Bauru",
                "+55 14 99876-4401",
                "https://x.example",
                "Padaria",
                "u",
            ],
        ],
        Right([(PADARIA, PADARIA, MARIA_PHONE)], tool="Apify Google Maps"),
    ),
    "Casa dos Dados without a trade name": (
        [
            [
                "situacao_cadastral",
                "razao_social",
                "nome_fantasia",
                "cnpj",
                "cnpj_raiz",
                "contato_telefonico_0_ddd",
                "contato_telefonico_0_numero",
            ],
            ["ATIVA", "PADARIA LTDA", "", "11222333000181", "11222333", "14", "998764401"],
        ],
        Right([("PADARIA LTDA", "PADARIA LTDA", MARIA_PHONE)], tool="Casa dos Dados"),
    ),
    "Hotmart": (
        [
            ["Transação", "Nome do Produto", "Comprador(a)", "Email do(a) Comprador(a)", "DDD", "Telefone"],
            ["HP1", "Curso", "Maria Exemplo", "m@x.example", "14", "998764401"],
        ],
        Right([(MARIA, None, MARIA_PHONE)], custom={"Nome do Produto": "Curso"}, tool="Hotmart"),
    ),
    "area code in a column of its own": (
        [["Cliente", "DDD", "Fone"], ["Maria Exemplo", "14", "99876-4401"], ["Ana", "014", "33334402"]],
        Right([(MARIA, None, MARIA_PHONE), ("Ana", None, "551433334402")]),
    ),
    "the seller's phone is not the lead's": (
        [
            ["Nome", "Telefone do vendedor", "Telefone do cliente", "Fax"],
            ["Maria Exemplo", "(11) 98888-0000", "(14) 99876-4401", "(14) 3333-0000"],
        ],
        Right([(MARIA, None, MARIA_PHONE)], custom={"Telefone do vendedor": "(11) 98888-0000"}),
    ),
    "a type of phone is no phone": (
        [["Nome", "Tipo de telefone", "Telefone"], ["Maria Exemplo", "celular", "14998764401"]],
        Right([(MARIA, None, MARIA_PHONE)], custom={"Tipo de telefone": "celular"}),
    ),
    "WhatsApp says yes or no": (
        [["Nome", "Tem WhatsApp?", "Celular"], ["Maria Exemplo", "Sim", "14998764401"]],
        Right([(MARIA, None, MARIA_PHONE)], custom={"Tem WhatsApp?": "Sim"}),
    ),
    "links to WhatsApp": (
        [["Loja", "Link do WhatsApp"], ["Padaria São Bento", "https://wa.me/5514998764401?text=Oi"]],
        Right([(PADARIA, PADARIA, MARIA_PHONE)]),
    ),
    "a mobile number in the second telephone column": (
        [["Nome", "Telefone 1", "Telefone 2"], ["Maria Exemplo", "(14) 3333-4401", "(14) 99876-4401"]],
        Right([(MARIA, None, MARIA_PHONE)], custom={"Telefone 1": "(14) 3333-4401"}),
    ),
    "a damaged number beside a good one": (
        [["Nome", "Celular", "Telefone"], ["Maria Exemplo", "5,51E+12", "(14) 3333-4401"]],
        Right([(MARIA, None, "551433334401")]),
    ),
    "first name and surname in English": (
        [["firstname", "lastname", "phone"], ["Maria", "Exemplo", "+55 14 99876-4401"]],
        Right([(MARIA, None, MARIA_PHONE)]),
    ),
    "surname that stands in the name already": (
        [["Primeiro nome", "Sobrenome", "Fone"], ["Maria", "Maria", "14998764401"]],
        Right([("Maria", None, MARIA_PHONE)]),
    ),
    "two names, one for the person": (
        [["Nome fantasia", "Nome do responsável", "Whats"], ["Padaria", "Maria Exemplo", "14 9 9876 4401"]],
        Right([(MARIA, "Padaria", MARIA_PHONE)]),
    ),
    "a header that says nothing": (
        [["Fulano de tal", "Dados"], *[[f"Pessoa {chr(65 + n)}x", f"149987644{n:02}"] for n in range(3)]],
        Right([(f"Pessoa {chr(65 + n)}x", None, f"55149987644{n:02}") for n in range(3)], left_out=[1]),
    ),
    "CPF beside the phone": (
        [["Nome", "CPF", "Contato"], ["Maria Exemplo", "11987654321", "14998764401"]],
        Right([(MARIA, None, MARIA_PHONE)], custom={"CPF": "11987654321"}),
    ),
    "CPF or CNPJ": (
        [
            ["Nome", "CPF/CNPJ", "Telefone"],
            ["Maria Exemplo", "529.982.247-25", "14998764401"],
            ["Padaria", "11.222.333/0001-81", "14998764402"],
        ],
        Right([(MARIA, None, MARIA_PHONE), ("Padaria", None, "5514998764402")]),
    ),
    "a total in the last row": (
        [["Nome", "Telefone", "Valor"], ["Maria Exemplo", "14998764401", "10,00"], ["Total", "", "10,00"]],
        Right([(MARIA, None, MARIA_PHONE)], left_out=[3]),
    ),
    "the same number with and without its ninth digit": (
        [["Nome", "Telefone"], ["Maria Exemplo", "14998764401"], ["Outra", "+55 (14) 9876-4401"]],
        Right([(MARIA, None, MARIA_PHONE)], left_out=[3]),
    ),
    "pandas": (
        [["", "name", "phone", "company"], ["0", "Maria Exemplo", "5514998764401.0", "nan"]],
        Right([(MARIA, None, MARIA_PHONE)]),
    ),
    "formulas that keep text": (
        [["Nome", "Telefone"], ["Maria Exemplo", '="14998764401"']],
        Right([(MARIA, None, MARIA_PHONE)]),
    ),
    "form answers": (
        [
            ["Carimbo de data/hora", "Qual é o seu nome completo?", "Qual o seu WhatsApp com DDD?"],
            ["01/03/2024 10:00:00", "Maria Exemplo", "14 99876-4401"],
        ],
        Right([(MARIA, None, MARIA_PHONE)]),
    ),
    "no header": (
        [["Maria Exemplo", "14998764401"], ["José Exemplo", "14998764402"]],
        Right([(MARIA, None, MARIA_PHONE), ("José Exemplo", None, "5514998764402")], note="The file has no header"),
    ),
    "no header, with e-mail": (
        [["14998764401", "Maria Exemplo", "m@x.example"], ["14998764402", "José Exemplo", "j@x.example"]],
        Right([(MARIA, None, MARIA_PHONE), ("José Exemplo", None, "5514998764402")], custom={"Email": "m@x.example"}),
    ),
    "title, date and empty lines first": (
        [["Relatório"], ["Emitido em", "01/03/2024"], [], ["Cliente", "Celular"], ["Maria Exemplo", "14998764401"]],
        Right([(MARIA, None, MARIA_PHONE)], note="The header is on line 4"),
    ),
}


@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("name", TABLES)
def test_an_export_is_read_by_the_meaning_of_its_columns(name: str, delimiter: str, tmp_path: Path) -> None:
    rows, right = TABLES[name]
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows(rows)
    file = tmp_path / "leads.csv"
    file.write_bytes(out.getvalue().encode())
    assert_right(read_leads(file), right)
