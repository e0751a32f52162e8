"""Known column headings, of lead tools and of people, in Portuguese and English.

Headings are spelled as in the tools' documents and exports. They are compared without case, accents, spaces and
punctuation. Within a field the first heading is preferred.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

Headings = tuple[str, ...]

GENERAL: Final[Mapping[str, Headings]] = {
    "client_name": (
        *(
            "nome completo",
            "full name",
            "fullname",
            "nome do contato",
            "contact name",
            "nome do cliente",
            "client name",
        ),
        *("customer name", "nome do responsável", "nome da pessoa", "nome", "name", "display name", "file as"),
        *("cliente", "client", "customer", "comprador", "aluno", "paciente", "contato", "contact", "lead"),
    ),
    "title": (
        *("nome do lead", "lead name", "nome do negócio", "deal name", "título do negócio", "deal title"),
        *("nome do estabelecimento", "title"),
    ),
    "first_name": ("primeiro nome", "first name", "firstname", "given name", "fname", "prenome"),
    "middle_name": ("nome do meio", "segundo nome", "middle name", "additional name", "second name"),
    "last_name": ("sobrenome", "último nome", "last name", "lastname", "family name", "surname", "lname"),
    "company": (
        *("empresa", "company", "company name", "nome da empresa", "nome fantasia", "organização", "organization"),
        *("organization name", "nome da organização", "company / account", "account name", "account", "loja"),
        *("companhia", "razão social"),
    ),
    "deal_value": (
        *("valor", "deal value", "value", "valor do negócio", "valor da oportunidade", "valor do contrato", "valor R$"),
        *("amount", "deal amount", "orçamento", "venda, R$", "venda"),
    ),
    "priority": ("prioridade", "priority"),
    "tags": ("tags", "etiquetas", "tag", "etiqueta", "labels", "marcadores"),
    "notes": (
        *("observações", "notes", "observação", "note", "obs", "notas", "nota", "anotações", "comments", "comment"),
        *("comentários", "comentário", "descrição", "description"),
    ),
    "cnpj": ("cnpj", "cnpj da empresa", "cnpj number", "cnpj completo", "cnpj/cpf", "cpf/cnpj"),
    "email": (
        *("email", "e-mail", "email address", "e-mail address", "endereço de e-mail", "e-mail principal", "email 1"),
        *("emails", "work email", "work e-mail", "e-mail comercial", "email comercial", "correo", "mail"),
    ),
}

BUSINESS: Final[Mapping[str, Headings]] = {
    "Categoria": ("categoria", "category", "ramo", "segmento"),
    "CNAE Principal": ("cnae principal", "cnae", "atividade principal", "atividade_principal_descricao"),
    "Porte da Empresa": ("porte da empresa", "porte"),
    "Razão Social": ("razão social",),
    "Rating": ("rating", "review_rating", "nota média"),
    "Avaliações": ("avaliações", "reviews", "review_count"),
    "Endereço": ("endereço", "address", "full_address", "endereço completo"),
    "Cidade/UF": ("cidade/uf",),
    "Website Principal": ("website principal", "website", "site"),
    "WHOIS Responsável": ("whois responsável",),
    "Capital Social": ("capital social",),
    "Data Abertura": ("data abertura", "data de abertura", "data início atividade", "data de início de atividade"),
}
"""Headings that become a custom field under the CRM's own name."""


@dataclass(frozen=True)
class Tool:
    """A tool whose exports are known by headings that no other tool has together."""

    name: str
    signature: frozenset[str]
    columns: Mapping[str, Headings] = field(default_factory=dict)
    """Fields whose headings mean something else here than in general, or only here."""
    lists_firms: bool = False  # the name is a firm's, so it is the company too


def _tool(name: str, *signature: str, firms: bool = False, **columns: Headings) -> Tool:
    return Tool(name, frozenset(signature), columns, firms)


TOOLS: Final = (
    _tool("Google Maps Scraper (gosom)", "input_id", "plus_code", "review_count", client_name=("title",), firms=True),
    _tool("Outscraper", "query", "full_address", "owner_title", client_name=("name",), firms=True),
    _tool("Apify Google Maps", "title", "categoryName", "totalScore", client_name=("title",), firms=True),
    _tool(
        "Casa dos Dados",
        *("cnpj_raiz", "situacao_cadastral", "razao_social"),
        client_name=("nome_fantasia", "razao_social"),
        company=("nome_fantasia", "razao_social"),
        firms=True,
    ),
    _tool("RD Station Marketing", "Estágio no funil", "Lead Scoring - Perfil", client_name=("Nome",)),
    _tool("RD Station CRM", "Nome da negociação", "Etapa", title=("Nome da negociação",), client_name=("Contatos",)),
    _tool(
        "Pipedrive",
        "Person - Name",
        client_name=("Person - Name",),
        company=("Person - Organization", "Organization - Name", "Deal - Organization"),
        title=("Deal - Title", "Lead - Title"),
        deal_value=("Deal - Value", "Lead - Value"),
        email=("Person - Email - Work", "Person - Email - Home", "Person - Email - Other"),
        tags=("Person - Labels", "Person - Label", "Deal - Label"),
        notes=("Person - Notes",),
    ),
    _tool(
        "Pipedrive",
        "Pessoa - Nome",
        client_name=("Pessoa - Nome",),
        company=("Pessoa - Organização", "Organização - Nome", "Negócio - Organização"),
        title=("Negócio - Título", "Lead - Título"),
        deal_value=("Negócio - Valor", "Lead - Valor"),
        email=("Pessoa - E-mail - Trabalho", "Pessoa - E-mail - Residência", "Pessoa - E-mail - Outros"),
        tags=("Pessoa - Etiquetas", "Pessoa - Etiqueta"),
    ),
    _tool(
        "Kommo",
        *("Nome do lead", "Nome completo", "Responsável"),
        client_name=("Nome completo", "Contato principal"),
        company=("Empresa", "Empresa do contato"),
        title=("Nome do lead",),
        deal_value=("Venda, R$", "Venda"),
    ),
    _tool(
        "Kommo",
        *("Lead name", "Full name", "Responsible"),
        client_name=("Full name", "Main contact"),
        title=("Lead name",),
        deal_value=("Sale",),
    ),
    _tool(
        "Bitrix24",
        *("Lead name", "Salutation", "Company Name"),
        title=("Lead name",),
        deal_value=("Total", "Opportunity"),
        notes=("Comment",),
    ),
    _tool(
        "Bitrix24",
        *("Nome do Lead", "Saudação", "Nome da empresa"),
        title=("Nome do Lead",),
        first_name=("Nome", "Primeiro nome"),
        deal_value=("Total",),
    ),
    _tool(
        "Google Contacts",
        *("Name", "Given Name", "Phone 1 - Value"),
        client_name=("Name",),
        company=("Organization 1 - Name",),
        email=("E-mail 1 - Value", "E-mail 2 - Value"),
    ),
    _tool(
        "Google Contacts",
        *("First Name", "Phonetic First Name", "Phone 1 - Value"),
        company=("Organization Name",),
        email=("E-mail 1 - Value", "E-mail 2 - Value"),
    ),
    _tool(
        "Outlook",
        *("First Name", "Business Phone", "E-mail Address"),
        company=("Company",),
        email=("E-mail Address", "E-mail 2 Address"),
    ),
    _tool(
        "Outlook",
        *("Nome", "Telefone comercial", "Endereço de email"),
        first_name=("Nome",),
        email=("Endereço de email",),
    ),
    _tool("Meta lead ads", "form_id", "ad_id", "created_time", client_name=("full_name", "nome_completo")),
    _tool("Mailchimp", "MEMBER_RATING", "OPTIN_TIME", email=("Email Address",)),
    _tool("ActiveCampaign", "Contact ID", "First Name", "Account", company=("Account", "Organization")),
    _tool(
        "Zoho CRM",
        *("Record Id", "Lead Owner", "Last Name"),
        client_name=("Lead Name", "Full Name"),
        notes=("Description",),
    ),
    _tool("HubSpot", "Record ID", "First Name", "Last Name"),
    _tool("Salesforce", "Lead Owner", "Company / Account", client_name=("Name", "Full Name")),
    _tool("Salesforce", "LastName", "LeadSource", client_name=("Name",)),
    _tool("Agendor", "Nome", "Pessoa de contato", client_name=("Pessoa de contato", "Nome"), company=("Nome",)),
    _tool("PipeRun", "Oportunidade", "Pessoa", client_name=("Pessoa",), title=("Oportunidade",)),
    _tool("Hotmart", "Transação", "Comprador(a)", client_name=("Comprador(a)",)),
)

RFB_COLUMNS: Final = (
    *("cnpj_basico", "cnpj_ordem", "cnpj_dv", "matriz_filial", "nome_fantasia", "situacao_cadastral"),
    *("data_situacao_cadastral", "motivo_situacao_cadastral", "nome_cidade_exterior", "pais", "data_inicio_atividade"),
    *("cnae_principal", "cnae_secundaria", "tipo_logradouro", "logradouro", "numero", "complemento", "bairro", "cep"),
    *("uf", "municipio", "ddd_1", "telefone_1", "ddd_2", "telefone_2", "ddd_fax", "fax", "email"),
    *("situacao_especial", "data_situacao_especial"),
)
"""The layout of ESTABELECIMENTOS in the open data of the Receita Federal, which has no header."""

RFB: Final = Tool(
    "Receita Federal (estabelecimentos)",
    frozenset(("cnpj_basico", "cnpj_ordem", "cnpj_dv")),
    {"client_name": ("nome_fantasia",), "company": ("nome_fantasia",)},
    lists_firms=True,
)

# Telephone columns are known by words: no table holds every "Phone 3 - Value" and "contato_telefonico_1_completo".
PHONE_WORDS: Final = frozenset(
    (
        *("telefone", "telefones", "telefonico", "telefonicos", "fone", "fones", "tel", "celular", "celulares", "cel"),
        *("whatsapp", "whats", "wpp", "zap", "phone", "phones", "mobile", "cellphone", "telephone", "movel", "cell"),
        *("phonenumber", "mobilephone", "fone1", "fone2", "tel1", "tel2", "telefone1", "telefone2", "celular1"),
    )
)
NO_PHONE_WORDS: Final = frozenset(
    (
        *("tipo", "type", "label", "fax", "ramal", "ext", "extension", "operadora", "carrier", "ddi", "country"),
        *(
            "pais",
            "code",
            "codigo",
            "owner",
            "proprietario",
            "vendedor",
            "consultor",
            "corretor",
            "atendente",
            "usuario",
        ),
        *("user", "agent", "agente", "seller", "sdr", "closer", "emergencia", "assistant", "assistente", "callback"),
        *("valido", "valid", "invalido", "status", "check", "verificado", "verified", "optin", "opt", "consent"),
        *("aceita", "permite", "data", "date", "hora", "count", "total", "qtd", "calls", "chamadas", "tags", "pager"),
    )
)
"""Words that change the meaning of a telephone word beside them: another thing, or another person's number."""

QUESTIONS: Final = (frozenset(("seu", "nome")), frozenset(("your", "name")))
"""Words of a question in a form that asks for the name: `Qual é o seu nome completo?`"""

PHONE_RANKS: Final = (
    (frozenset(("whatsapp", "whats", "wpp", "zap")), 0),
    (frozenset(("celular", "celulares", "cel", "mobile", "movel", "cellphone", "cell", "mobilephone", "celular1")), 10),
    (frozenset(("work", "comercial", "trabalho", "business", "company", "main", "corporativo", "empresa")), 30),
    (frozenset(("home", "residencial", "residencia", "casa")), 40),
    (frozenset(("other", "outro", "outros", "alternativo", "secundario", "recado")), 50),
)
PLAIN_PHONE_RANK: Final = 20

REFUSALS: Final = (
    # Heading, and the content of its cell if the person wants no messages.
    ("unsubscribed from all email", ("true", "yes", "sim")),
    ("status para comunicacao por email", ("nao", "no", "descadastrado")),
    ("email opt out", ("true", "yes", "sim", "1")),
    ("optedout", ("true", "yes", "sim", "1")),
    ("opt out", ("true", "yes", "sim", "1")),
    ("do not call", ("true", "yes", "sim", "1")),
    ("nao perturbe", ("true", "yes", "sim", "1")),
    ("unsubscribed", ("true", "yes", "sim", "1")),
)
"""Columns in which a tool records that a person wants no messages of some kind: reported, never ignored silently."""
