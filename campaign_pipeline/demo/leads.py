"""Leads to try the pipeline with: made up and realistic (`make_leads`), or read from a CSV (`read_leads_csv`).

Made-up people and firms are fictitious and their domains end in `.example`, which never resolves (RFC 2606). Their
telephone and CNPJ numbers are well formed and may by chance exist: they are for the sandbox, not for a real provider.
"""

import csv
import io
import json
import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from os import PathLike
from pathlib import Path

BUSINESS_FIELDS = (
    "Categoria",
    "CNAE Principal",
    "Porte da Empresa",
    "Razão Social",
    "Rating",
    "Avaliações",
    "Endereço",
    "Cidade/UF",
    "Website Principal",
    "Email",
    "WHOIS Responsável",
    "Capital Social",
    "Data Abertura",
)
"""The custom fields about a lead's firm, named as the CRM names them, in the order in which a context shows them."""

PRIORITIES = ("low", "medium", "high")

TROUBLE_EVERY = 20
"""Each full block of this many made-up leads has exactly one troublesome lead (5 %), at a random place."""

LONG_NOTE_CHARS = 8_000
"""A troublesome note is at least this long."""


@dataclass(frozen=True)
class Lead:
    """A person at a firm, as the CRM's `leads` row and its custom values hold it."""

    client_name: str
    company: str | None = None
    phone: str | None = None  # as a person wrote it: neither normalised nor surely a number
    deal_value: Decimal | None = None  # Brazilian reais
    priority: str = "medium"  # one of PRIORITIES
    tags: tuple[str, ...] = ()
    notes: str | None = None
    cnpj: str | None = None  # written 11.222.333/0001-81
    custom_fields: dict[str, str] = field(default_factory=dict, hash=False)  # field name -> value, never empty


@dataclass(frozen=True)
class Problem:
    """Why a row of a CSV was left out. Holds what the cell holds, personal data too: to be shown, not logged."""

    line: int  # where the row begins in the file, from 1
    column: str  # the heading as the file has it; `column 7` for a cell without one; empty if the whole row is meant
    value: str  # the whole cell
    message: str  # one sentence: the field, the value, and what would be right


class LeadsFileError(ValueError):
    """The file as a whole cannot be used; the text says why, in one sentence."""


# ---------------------------------------------------------------------------------------------------- made-up leads


@dataclass(frozen=True)
class _City:
    name: str
    state: str  # UF
    area_code: str  # DDD
    weight: int = 1  # how often it is drawn


@dataclass(frozen=True)
class _Trade:
    category: str
    cnae: str
    company_prefixes: tuple[str, ...]
    median_deal: int  # reais
    site_share: float  # how many of these firms have a site


_CITIES = (
    _City("São Paulo", "SP", "11", 14),
    _City("Guarulhos", "SP", "11", 2),
    _City("São José dos Campos", "SP", "12", 2),
    _City("Santos", "SP", "13", 2),
    _City("Bauru", "SP", "14"),
    _City("Sorocaba", "SP", "15", 2),
    _City("Ribeirão Preto", "SP", "16", 2),
    _City("São José do Rio Preto", "SP", "17"),
    _City("Presidente Prudente", "SP", "18"),
    _City("Campinas", "SP", "19", 3),
    _City("Rio de Janeiro", "RJ", "21", 8),
    _City("Niterói", "RJ", "21", 2),
    _City("Campos dos Goytacazes", "RJ", "22"),
    _City("Volta Redonda", "RJ", "24"),
    _City("Vitória", "ES", "27", 2),
    _City("Cachoeiro de Itapemirim", "ES", "28"),
    _City("Belo Horizonte", "MG", "31", 5),
    _City("Juiz de Fora", "MG", "32"),
    _City("Governador Valadares", "MG", "33"),
    _City("Uberlândia", "MG", "34", 2),
    _City("Poços de Caldas", "MG", "35"),
    _City("Divinópolis", "MG", "37"),
    _City("Montes Claros", "MG", "38"),
    _City("Curitiba", "PR", "41", 4),
    _City("Ponta Grossa", "PR", "42"),
    _City("Londrina", "PR", "43", 2),
    _City("Maringá", "PR", "44"),
    _City("Foz do Iguaçu", "PR", "45"),
    _City("Francisco Beltrão", "PR", "46"),
    _City("Joinville", "SC", "47", 2),
    _City("Florianópolis", "SC", "48", 2),
    _City("Chapecó", "SC", "49"),
    _City("Porto Alegre", "RS", "51", 4),
    _City("Pelotas", "RS", "53"),
    _City("Caxias do Sul", "RS", "54"),
    _City("Santa Maria", "RS", "55"),
    _City("Brasília", "DF", "61", 4),
    _City("Goiânia", "GO", "62", 3),
    _City("Palmas", "TO", "63"),
    _City("Rio Verde", "GO", "64"),
    _City("Cuiabá", "MT", "65"),
    _City("Rondonópolis", "MT", "66"),
    _City("Campo Grande", "MS", "67"),
    _City("Rio Branco", "AC", "68"),
    _City("Porto Velho", "RO", "69"),
    _City("Salvador", "BA", "71", 4),
    _City("Ilhéus", "BA", "73"),
    _City("Juazeiro", "BA", "74"),
    _City("Feira de Santana", "BA", "75"),
    _City("Vitória da Conquista", "BA", "77"),
    _City("Aracaju", "SE", "79"),
    _City("Recife", "PE", "81", 3),
    _City("Maceió", "AL", "82"),
    _City("João Pessoa", "PB", "83"),
    _City("Natal", "RN", "84"),
    _City("Fortaleza", "CE", "85", 4),
    _City("Teresina", "PI", "86"),
    _City("Petrolina", "PE", "87"),
    _City("Juazeiro do Norte", "CE", "88"),
    _City("Picos", "PI", "89"),
    _City("Belém", "PA", "91", 2),
    _City("Manaus", "AM", "92", 3),
    _City("Santarém", "PA", "93"),
    _City("Marabá", "PA", "94"),
    _City("Boa Vista", "RR", "95"),
    _City("Macapá", "AP", "96"),
    _City("Tefé", "AM", "97"),
    _City("São Luís", "MA", "98", 2),
    _City("Imperatriz", "MA", "99"),
)
_CITY_WEIGHTS = tuple(city.weight for city in _CITIES)
# Every area code in use in Brazil has a city above, so the list serves for checking numbers too.
_AREA_CODES = frozenset(city.area_code for city in _CITIES)

_TRADES = (
    _Trade(
        "Padaria",
        "4721-1/02 - Padaria e confeitaria com predominância de revenda",
        ("Padaria", "Panificadora", "Padaria e Confeitaria"),
        1_800,
        0.3,
    ),
    _Trade(
        "Clínica odontológica",
        "8630-5/04 - Atividade odontológica",
        ("Clínica Odontológica", "Odontologia", "Instituto Odontológico"),
        6_500,
        0.8,
    ),
    _Trade(
        "Oficina mecânica",
        "4520-0/01 - Serviços de manutenção e reparação mecânica de veículos automotores",
        ("Oficina", "Auto Mecânica", "Centro Automotivo"),
        3_200,
        0.4,
    ),
    _Trade(
        "Academia",
        "9313-1/00 - Atividades de condicionamento físico",
        ("Academia", "Studio Fitness", "Box"),
        4_200,
        0.7,
    ),
    _Trade(
        "Escritório contábil",
        "6920-6/01 - Atividades de contabilidade",
        ("Contabilidade", "Escritório Contábil", "Assessoria Contábil"),
        5_000,
        0.8,
    ),
    _Trade(
        "Pet shop",
        "4789-0/04 - Comércio varejista de animais vivos e de artigos e alimentos para animais de estimação",
        ("Pet Shop", "Casa de Ração", "Banho & Tosa"),
        2_400,
        0.5,
    ),
    _Trade(
        "Construtora",
        "4120-4/00 - Construção de edifícios",
        ("Construtora", "Engenharia e Construções", "Empreendimentos"),
        48_000,
        0.9,
    ),
    _Trade(
        "Restaurante",
        "5611-2/01 - Restaurantes e similares",
        ("Restaurante", "Cantina", "Churrascaria"),
        2_900,
        0.6,
    ),
    _Trade(
        "Clínica veterinária",
        "7500-1/00 - Atividades veterinárias",
        ("Clínica Veterinária", "Hospital Veterinário"),
        5_500,
        0.7,
    ),
    _Trade(
        "Salão de beleza",
        "9602-5/01 - Cabeleireiros, manicure e pedicure",
        ("Salão", "Espaço de Beleza", "Studio Hair"),
        1_500,
        0.3,
    ),
    _Trade(
        "Imobiliária",
        "6821-8/01 - Corretagem na compra e venda e avaliação de imóveis",
        ("Imobiliária", "Negócios Imobiliários"),
        9_000,
        0.95,
    ),
    _Trade(
        "Advocacia",
        "6911-7/01 - Serviços advocatícios",
        ("Advocacia", "Sociedade de Advogados"),
        8_000,
        0.85,
    ),
    _Trade(
        "Escola de idiomas",
        "8593-7/00 - Ensino de idiomas",
        ("Escola de Idiomas", "Centro de Línguas"),
        4_800,
        0.8,
    ),
    _Trade(
        "Ótica",
        "4774-1/00 - Comércio varejista de artigos de óptica",
        ("Ótica", "Óticas"),
        3_000,
        0.5,
    ),
)

_FIRST_NAMES = (
    *("Adriana", "Aline", "Amanda", "Ana", "Ana Cláudia", "André", "Antônio", "Beatriz", "Bruna", "Bruno", "Caio"),
    *("Camila", "Carlos", "Cauê", "Cecília", "Célia", "César", "Cíntia", "Cláudio", "Conceição", "Daniel", "Débora"),
    *("Diego", "Edson", "Eduarda", "Elaine", "Érica", "Fábio", "Fernanda", "Flávia", "Francisco", "Gabriel", "Glória"),
    *("Gustavo", "Heloísa", "Inês", "Isabela", "Ítalo", "Jéssica", "João", "João Pedro", "Joaquim", "José", "Júlia"),
    *("Juliana", "Larissa", "Letícia", "Lívia", "Lúcia", "Luís Fernando", "Luiz", "Márcia", "Marcelo", "Maria"),
    *("Maria José", "Mariana", "Mário", "Mônica", "Murilo", "Natália", "Otávio", "Patrícia", "Paulo", "Rafael"),
    *("Raíssa", "Raquel", "Renata", "Ricardo", "Roberto", "Rogério", "Rosângela", "Sandra", "Sebastião", "Sérgio"),
    *("Sílvia", "Sônia", "Tânia", "Tatiane", "Thaís", "Thiago", "Valéria", "Vinícius", "Vitória", "Wagner", "Yasmin"),
)
_SURNAMES = (
    *("Abreu", "Almeida", "Alves", "Amaral", "Andrade", "Antunes", "Aragão", "Araújo", "Assunção", "Azevedo"),
    *("Barbosa", "Barros", "Batista", "Borges", "Brandão", "Camargo", "Cardoso", "Carvalho", "Castro", "Conceição"),
    *("Correia", "Costa", "da Cruz", "da Luz", "da Rocha", "da Silva", "de Moraes", "de Oliveira", "de Souza", "Dias"),
    *("do Carmo", "dos Reis", "dos Santos", "Duarte", "Esteves", "Farias", "Fernandes", "Ferreira", "Fonseca"),
    *("Freitas", "Galvão", "Garcia", "Gomes", "Gonçalves", "Guimarães", "Lima", "Lopes", "Magalhães", "Martins"),
    *("Medeiros", "Melo", "Mendonça", "Monteiro", "Moreira", "Nakamura", "Nascimento", "Nogueira", "Pacheco"),
    *("Peixoto", "Pereira", "Pinheiro", "Queiroz", "Ramos", "Ribeiro", "Rodrigues", "Romão", "Salomão", "Sampaio"),
    *("Schneider", "Siqueira", "Tavares", "Teixeira", "Toledo", "Uchôa", "Vasconcelos", "Vieira", "Yamamoto"),
    "Zanetti",
)
_COMPANY_WORDS = (
    *("Aliança", "Alvorada", "Aurora", "Bela Vista", "Boa Esperança", "Bom Jesus", "Central", "Cidade Nova"),
    *("Cristal", "Estação", "Estrela", "Excelência", "Florença", "Harmonia", "Horizonte", "Ideal", "Imperial", "Ipê"),
    *("Jardim", "Líder", "Millenium", "Mundo Novo", "Nossa Senhora Aparecida", "Nova Era", "Oásis", "Pérola"),
    *("Pioneira", "Prisma", "Progresso", "Real", "Santa Clara", "Santo Antônio", "São Bento", "São Jorge", "São José"),
    *("Sol Nascente", "União", "Vale Verde", "Vitória", "Zênite"),
)
_STREETS = (
    *("Rua das Acácias", "Rua XV de Novembro", "Avenida Brasil", "Rua Sete de Setembro", "Avenida Getúlio Vargas"),
    *("Rua Marechal Deodoro", "Travessa São João", "Avenida das Nações", "Rua Tiradentes", "Alameda dos Ipês"),
    *("Rodovia BR-116, km", "Rua Coronel José Inácio", "Praça da Sé", "Avenida Beira-Rio"),
)
_DISTRICTS = ("Centro", "Jardim América", "Vila Nova", "Boa Vista", "Santa Luzia", "Água Branca", "Distrito Industrial")
_TAGS = (
    *("indicação", "Google Maps", "site", "Instagram", "feira do setor", "cliente antigo", "reativar", "quente"),
    *("frio", "VIP", "decisor", "retornar após as férias", "2ª tentativa"),
)
_NOTES = (
    "Pediu proposta por escrito e prefere falar depois das 14h.",
    "Já usa um sistema concorrente; o contrato vence em março.",
    "Indicado por cliente da mesma rua. Gostou da ideia, achou o preço alto.",
    "Não atende ligação, só responde por mensagem.",
    "Quer integrar com a maquininha e com o estoque.",
    "Sócio novo entrou no ano passado; decisão é dos dois.",
    "Reclamou do suporte anterior. Tratar com atenção.",
    "Tem duas unidades e vai abrir a terceira.",
    "Visita feita; ficou de conversar com a contadora.",
    "Orçamento enviado, sem retorno até agora.",
)
_PRIORITY_WEIGHTS = (30, 50, 20)  # as PRIORITIES
_PAYMENTS = ("Pix", "boleto 28 dias", "cartão em 3x", "à vista com desconto")
_HOURS = ("seg–sex 8h–18h", "seg–sáb 9h–19h", "todos os dias, 6h–22h", "seg–sex 9h–12h e 14h–18h")
_EMOJI = ("🚀", "🦷✨", "🐶", "💪🏽", "👩‍⚕️", "🇧🇷", "🙏🏾")

# Size by law, its share among firms, and the share capital that goes with it (reais, lowest and highest).
_SIZES = (
    ("Microempresa (ME)", 60, 5_000, 100_000),
    ("Empresa de Pequeno Porte (EPP)", 30, 50_000, 500_000),
    ("Demais", 10, 300_000, 5_000_000),
)
_DEAL_SIGMA = 0.8  # of the logarithm: about two thirds of the deals lie between 0.45 and 2.2 times the median


def make_leads(count: int, seed: int) -> list[Lead]:
    """Make realistic Brazilian leads, always the same for a seed; a longer batch begins with the shorter one.

    No two leads of a batch share a telephone number or a CNPJ. One lead of each full block of `TROUBLE_EVERY` is
    troublesome, as in life, in turn: without a phone, letters in the phone, emoji in the name, a very long note.

    Raises:
        ValueError: `count` is negative.
    """
    if count < 0:
        raise ValueError(f"count must be 0 or more, not {count}")
    maker = _LeadMaker(random.Random(seed))
    return [maker.make(index) for index in range(count)]


class _LeadMaker:
    """Draws the leads of one batch, one after the other, from one source of randomness."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._used: set[str] = set()  # subscriber numbers and CNPJs
        self._trouble_at = 0

    def make(self, index: int) -> Lead:
        """Draw the next lead; `index` counts from 0 without gaps."""
        rng = self._rng
        block, place = divmod(index, TROUBLE_EVERY)
        if place == 0:
            self._trouble_at = rng.randrange(TROUBLE_EVERY)
        trade = rng.choice(_TRADES)
        city = rng.choices(_CITIES, _CITY_WEIGHTS)[0]
        owner, surname = self._person()
        company = self._company(trade, surname)
        lead = Lead(
            client_name=owner,
            company=company,
            phone=self._phone(city),
            deal_value=self._deal_value(trade),
            priority=rng.choices(PRIORITIES, _PRIORITY_WEIGHTS)[0],
            tags=tuple(rng.sample(_TAGS, rng.randrange(4))),
            notes=" ".join(rng.sample(_NOTES, rng.randrange(1, 4))) if self._happens(0.7) else None,
            cnpj=self._cnpj(),
            custom_fields=self._business_fields(trade, city, company, owner) | self._odd_fields(company),
        )
        return self._troubled(lead, block) if place == self._trouble_at else lead

    def _happens(self, share: float) -> bool:
        return self._rng.random() < share

    def _person(self) -> tuple[str, str]:
        """Draw a full name and its last surname."""
        surnames = self._rng.sample(_SURNAMES, self._rng.choice((1, 2, 2)))
        return " ".join((self._rng.choice(_FIRST_NAMES), *surnames)), surnames[-1]

    def _company(self, trade: _Trade, surname: str) -> str:
        own = surname.rsplit(maxsplit=1)[-1] if self._happens(0.3) else self._rng.choice(_COMPANY_WORDS)
        return f"{self._rng.choice(trade.company_prefixes)} {own}"

    def _unused(self, prefix: str, low: int, high: int) -> str:
        """Draw digits from `low` to `high` that this batch does not have yet behind this prefix."""
        while True:
            digits = str(self._rng.randint(low, high)).zfill(len(str(high)))
            if prefix + digits not in self._used:
                self._used.add(prefix + digits)
                return digits

    def _phone(self, city: _City) -> str:
        area = city.area_code
        digits = "9" + self._unused(f"phone {area}", 6_000_0000, 9_999_9999)
        pretty = f"{digits[:5]}-{digits[5:]}"
        formats = (
            f"({area}) {pretty}",
            f"+55 {area} {digits}",
            f"{area}{digits}",
            f"{area} {pretty}",
            f"55{area}{digits}",
        )
        return self._rng.choices(formats, (40, 20, 20, 10, 10))[0]

    def _cnpj(self) -> str:
        root = self._unused("cnpj ", 10_000_000, 59_999_999)
        base = root + ("0001" if self._happens(0.92) else f"{self._rng.randint(2, 40):04}")
        return _format_cnpj(base + _cnpj_check_digits(base))

    def _deal_value(self, trade: _Trade) -> Decimal | None:
        """Draw a value that is log-normal around the trade's median; every tenth lead has none yet."""
        factor = self._rng.lognormvariate(0, _DEAL_SIGMA)
        if self._happens(0.1):
            return None
        # People quote in tens of reais, seldom with cents.
        cents = "0.90" if self._happens(0.1) else "0.00"
        return Decimal(max(10, round(trade.median_deal * factor / 10) * 10)) + Decimal(cents)

    def _business_fields(self, trade: _Trade, city: _City, company: str, owner: str) -> dict[str, str]:
        rng = self._rng
        # A label of a host name has 63 characters at most.
        host = f"{_slug(company)}-{_slug(city.name)}"[:63].rstrip("-")
        domain = f"{host}.com.br.example"
        size, _, low, high = rng.choices(_SIZES, [share for _, share, _, _ in _SIZES])[0]
        capital = rng.randrange(low, high, 1_000)
        street = f"{rng.choice(_STREETS)} {rng.randint(1, 2_500)} - {rng.choice(_DISTRICTS)}"
        opened = f"{rng.randint(1, 28):02}/{rng.randint(1, 12):02}/{rng.randint(1985, 2024)}"
        has_site = self._happens(trade.site_share)
        # Enrichment never finds everything: value, and the share of leads that have it.
        found = (
            (trade.category, 1.0),
            (trade.cnae, 0.95),
            (size, 0.9),
            (f"{company} Ltda".upper(), 0.9),
            (f"{rng.triangular(2.5, 5, 4.6):.1f}".replace(".", ","), 0.8),
            (str(round(rng.lognormvariate(3.8, 1.2))), 0.8),
            (street, 0.85),
            (f"{city.name}/{city.state}", 1.0),
            (f"https://www.{domain}", 1.0 if has_site else 0.0),
            (f"{rng.choice(('contato', 'comercial', _slug(owner.split(maxsplit=1)[0])))}@{domain}", 0.75),
            (owner.upper() if self._happens(0.5) else f"{company} Ltda", 0.6 if has_site else 0.0),
            (f"R$ {capital:,}".replace(",", ".") + ",00", 0.8),
            (opened, 0.9),
        )
        return {
            name: value for name, (value, share) in zip(BUSINESS_FIELDS, found, strict=True) if self._happens(share)
        }

    def _odd_fields(self, company: str) -> dict[str, str]:
        """Draw what else sales teams keep: short texts, and the JSON that an enrichment tool left behind."""
        rng = self._rng
        odd = (
            ("Instagram", f"@{_slug(company).replace('-', '')}.exemplo", 0.4),
            ("Nº de Funcionários", str(rng.randint(1, 60)), 0.3),
            ("Forma de Pagamento Preferida", rng.choice(_PAYMENTS), 0.2),
            ("Horário de Atendimento", rng.choice(_HOURS), 0.25),
            ("Aniversário do Contato", f"{rng.randint(1, 28):02}/{rng.randint(1, 12):02}", 0.1),
            ("dados_enriquecimento", json.dumps({"score": rng.randint(0, 100), "fonte": "mapa"}), 0.15),
        )
        return {name: value for name, value, share in odd if self._happens(share)}

    def _troubled(self, lead: Lead, block: int) -> Lead:
        """Give a lead the trouble whose turn it is."""
        kind = block % 4
        if kind == 0:
            return replace(lead, phone=None)
        if kind == 1:
            return replace(lead, phone=self._phone_with_letters(lead.phone or ""))
        if kind == 2:
            return replace(lead, client_name=f"{lead.client_name} {self._rng.choice(_EMOJI)}")
        return replace(lead, notes=self._long_note())

    def _phone_with_letters(self, phone: str) -> str:
        """Spoil a number the way people and exports do: a typed letter, a masked number, words instead of a number."""
        return self._rng.choice((f"{phone[:-1]}O", f"{phone[:-4]}XXXX", "ver com o sócio"))

    def _long_note(self) -> str:
        note = "Histórico completo da conversa:"
        while len(note) < LONG_NOTE_CHARS:
            note += f"\n{self._rng.randint(1, 28):02}/{self._rng.randint(1, 12):02} - {self._rng.choice(_NOTES)}"
        return note


# ------------------------------------------------------------------------------------------------- leads from a CSV

# Headings for each field of a Lead, in Portuguese and English, by preference: with a WhatsApp and a telephone column,
# the number for WhatsApp is the phone, and the other one is kept as a custom field (or used, where that cell is empty).
_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "client_name": (
        *("nome", "name", "client name", "nome do cliente", "nome completo", "full name", "nome do lead", "lead name"),
        *("cliente", "client", "customer", "customer name", "contato", "contact", "contact name", "nome do contato"),
        "lead",
    ),
    "company": (
        *("empresa", "company", "company name", "nome da empresa", "nome fantasia", "organização", "organization"),
    ),
    "phone": (
        *("whatsapp", "número do whatsapp", "telefone whatsapp", "celular whatsapp", "celular", "mobile", "cell phone"),
        *("telefone celular", "mobile phone", "telefone", "phone", "phone number", "número de telefone", "fone", "tel"),
        *("telefone 1", "phone 1"),
    ),
    "deal_value": (
        *("valor", "deal value", "value", "valor do negócio", "valor da oportunidade", "valor do contrato", "valor R$"),
        *("amount", "deal amount"),
    ),
    "priority": ("prioridade", "priority"),
    "tags": ("tags", "etiquetas", "tag", "etiqueta", "labels", "marcadores"),
    "notes": ("observações", "notes", "observação", "note", "obs", "notas", "nota", "anotações", "comments"),
    "cnpj": ("cnpj", "cnpj da empresa", "cnpj number"),
}

_DELIMITERS = (";", ",", "\t", "|")
_PRIORITY_WORDS = {
    **dict.fromkeys(("low", "baixa", "baixo"), "low"),
    **dict.fromkeys(("medium", "média", "médio", "normal"), "medium"),
    **dict.fromkeys(("high", "alta", "alto", "urgente", "urgent"), "high"),
}
_EXCEL_SIGNATURES = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
_SHOWN_CHARS = 40  # of a value in a message


def read_leads_csv(path: str | PathLike[str]) -> tuple[list[Lead], list[Problem]]:
    """Read leads from a CSV as spreadsheets and CRMs write it, and say what is wrong with the rows left out.

    Columns are known by name, whatever their order, case, accents and spaces, in Portuguese or English; a column that
    is not known becomes a custom field under its own heading. The text may be UTF-8, Windows-1252, Latin-1 or UTF-16;
    the separator a comma, semicolon, tab or bar. Amounts may be `R$ 1.234,56` or `1234.56`; a lone dot before three
    digits (`1.234`) groups thousands, as in Brazil. A row needs a name and a phone.

    A row with a problem is left out, with a `Problem` for each thing to correct, and the others are read. Of rows with
    the same phone, however written, the first stands.

    Raises:
        LeadsFileError: the file is missing, unreadable, not a CSV or without rows, or no column is a name or a phone.
    """
    file = Path(path)
    lines = _read_lines(file)
    start, delimiter = _sniff(lines)
    records = _parse(lines, start, delimiter)
    columns = _Columns(file, _header(file, records), delimiter)

    leads: list[Lead] = []
    problems: list[Problem] = []
    phone_lines: dict[str, int] = {}
    for line, record in records:
        if isinstance(record, csv.Error):
            problems.append(_broken_row(line, lines[line - 1], record))
            continue
        cells = [cell.strip() for cell in record]
        if any(cells):
            row = _Row(columns, line, cells)
            lead = row.read(phone_lines)
            problems += row.problems
            if not row.problems:
                leads.append(lead)
    if not leads and not problems:
        raise LeadsFileError(f"{file} has a header but no rows: write one lead on each line below it.")
    return leads, problems


def _read_lines(file: Path) -> list[str]:
    """Decode a file into its physical lines, each with its line break, which becomes a plain one."""
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        raise LeadsFileError(f"{file} does not exist: give the path of a CSV file.") from None
    except OSError as error:
        raise LeadsFileError(f"{file} cannot be read: {error.strerror}.") from error
    if raw.startswith(_EXCEL_SIGNATURES):
        raise LeadsFileError(f"{file} is a spreadsheet or an archive, not a CSV: save it as CSV first.")
    text = _decode(raw)
    if text is None or "\0" in text:
        raise LeadsFileError(f"{file} is not a text file: save the leads as CSV in UTF-8.")
    if not text.strip():
        raise LeadsFileError(f"{file} is empty: it needs a header and one lead on each line.")
    # Unlike str.splitlines, this breaks only where editors count a line: not at U+2028 or form feeds within a note.
    return list(io.StringIO(text, newline=None))


def _decode(raw: bytes) -> str | None:
    # Excel's "Unicode text" is UTF-16 with a mark. Latin-1 differs from Windows-1252 only in bytes that it leaves
    # undefined, and takes any byte, so it is the last resort.
    marked = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ("utf-16",) if marked else ("utf-8-sig", "cp1252", "latin-1"):
        with suppress(UnicodeDecodeError):
            return raw.decode(encoding)
    return None


def _sniff(lines: Sequence[str]) -> tuple[int, str]:
    """Find the index of the header's line, and the separator: the one that makes most known columns of the header.

    `csv.Sniffer` guesses from letter counts, and a comma in a note or a bar in the tags leads it astray.
    """
    start = next(index for index, line in enumerate(lines) if line.strip())
    if re.fullmatch(r"sep=.\s*", lines[start], re.IGNORECASE):  # Excel's hint, not a header
        start += 1

    def known_columns(delimiter: str) -> tuple[int, int]:
        record = next((record for _, record in _parse(lines, start, delimiter)), [])
        if isinstance(record, csv.Error):
            return 0, 0
        return sum(_fold(cell) in _FIELDS_BY_HEADING for cell in record), len(record)

    return start, max(_DELIMITERS, key=known_columns)


def _parse(lines: Sequence[str], start: int, delimiter: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Give each record from line index `start` on, with the line number where it begins.

    A record that is not well-formed comes as the error, and reading goes on at the very next line: a quote that is
    never closed costs its own row, not the rest of the file.
    """
    index = start
    while index < len(lines):
        base = index
        rest = (lines[number] for number in range(base, len(lines)))
        reader = csv.reader(rest, delimiter=delimiter, strict=True, skipinitialspace=True)
        try:
            for record in reader:
                if record:
                    yield index + 1, record
                index = base + reader.line_num
        except csv.Error as error:
            yield index + 1, error
            index += 1


def _header(file: Path, records: Iterator[tuple[int, list[str] | csv.Error]]) -> list[str]:
    line, header = next(records, (1, []))
    if isinstance(header, csv.Error):
        raise LeadsFileError(f"{file}, line {line}: the header is not well-formed CSV ({header}).")
    return header


def _broken_row(line: int, text: str, error: csv.Error) -> Problem:
    value = text.rstrip("\r\n")
    message = (
        f"The row {_shown(value)} is not well-formed CSV ({error}): "
        'close every quote, and write a quote within a quoted cell twice ("").'
    )
    return Problem(line, "", value, message)


class _Columns:
    """What the header says: the headings, and which columns may hold which field."""

    def __init__(self, file: Path, header: Sequence[str], delimiter: str) -> None:
        self.headings = [" ".join(cell.split()) for cell in header]
        self.delimiter = delimiter
        ranked: dict[str, list[tuple[int, int]]] = {}
        for index, heading in enumerate(self.headings):
            if known := _FIELDS_BY_HEADING.get(_fold(heading)):
                ranked.setdefault(known[0], []).append((known[1], index))
        self._by_field = {name: [index for _, index in sorted(columns)] for name, columns in ranked.items()}
        for name, what, examples in (
            ("client_name", "name", "Nome, Cliente, Contato or Name"),
            ("phone", "phone", "Telefone, Celular, WhatsApp or Phone"),
        ):
            if not self.of(name):
                found = ", ".join(filter(None, self.headings))
                raise LeadsFileError(
                    f"{file} has no column for the {what}: head one with {examples} (found: {_shown(found, 200)})."
                )

    def of(self, name: str) -> Sequence[int]:
        """Give the columns that may hold a field of a lead, the preferred one first."""
        return self._by_field.get(name, ())


class _Row:
    """One row on its way to a lead: takes each field from its cell, and notes what is wrong."""

    def __init__(self, columns: _Columns, line: int, cells: Sequence[str]) -> None:
        self.problems: list[Problem] = []
        self._columns = columns
        self._line = line
        missing = len(columns.headings) - len(cells)
        self._cells = [*cells, *[""] * missing]
        self._taken: set[int] = set()

    def read(self, phone_lines: dict[str, int]) -> Lead:
        """Read the lead, which holds only if there are no problems; notes the phone's line in `phone_lines`."""
        return Lead(
            client_name=self._name(),
            company=self._take("company")[1] or None,
            phone=self._phone(phone_lines),
            deal_value=self._deal_value(),
            priority=self._priority(),
            tags=self._tags(),
            notes=self._take("notes")[1] or None,
            cnpj=self._cnpj(),
            custom_fields=self._custom_fields(),  # last: what the others did not take
        )

    def _take(self, name: str, fits: Callable[[str], object] = bool) -> tuple[str, str]:
        """Take a field from its first cell that fits, or else its first with anything: the heading and the cell."""
        candidates = self._columns.of(name)
        filled = [index for index in candidates if self._cells[index]]
        if not filled:
            return (self._columns.headings[candidates[0]], "") if candidates else ("", "")
        index = next((index for index in filled if fits(self._cells[index])), filled[0])
        self._taken.add(index)
        return self._columns.headings[index], self._cells[index]

    def _complain(self, column: str, value: str, fault: str) -> None:
        subject = f"{column} {_shown(value)}" if value else column
        self.problems.append(Problem(self._line, column, value, f"{subject} {fault}"))

    def _name(self) -> str:
        column, value = self._take("client_name")
        if not value:
            self._complain(column, value, "is empty: write the name of the person, such as Maria de Souza.")
        return " ".join(value.split())

    def _phone(self, phone_lines: dict[str, int]) -> str:
        # A column named WhatsApp may also just say yes or no: then the number is in another one.
        column, value = self._take("phone", fits=lambda cell: _phone_key(_clean(cell)))
        text = _clean(value)
        key = _phone_key(text)
        if not text:
            self._complain(column, value, "is empty: write a number with its area code, such as (11) 98765-4321.")
        elif key is None:
            self._complain(
                column, value, "is not one phone number with its area code: write it like (11) 98765-4321, as text."
            )
        elif (first := phone_lines.setdefault(key, self._line)) != self._line:
            self._complain(column, value, f"is the number of line {first} already: keep each number on one line only.")
        return text

    def _deal_value(self) -> Decimal | None:
        column, value = self._take("deal_value")
        text = re.sub(r"^(R\$|BRL)\s*", "", _clean(value), flags=re.IGNORECASE)
        if text in {"", "-"}:  # a dash is how a spreadsheet's currency format shows nothing
            return None
        amount = _amount(text)
        if amount is None:
            self._complain(column, value, "is not an amount of reais: write it like R$ 1.234,56 or 1234.56.")
        return amount

    def _priority(self) -> str:
        column, value = self._take("priority")
        priority = _PRIORITIES_BY_WORD.get(_fold(value)) if value else "medium"
        if priority is None:
            self._complain(column, value, "is not a priority: write baixa, média or alta (low, medium or high).")
        return priority or "medium"

    def _tags(self) -> tuple[str, ...]:
        tags = (tag.strip() for tag in re.split(r"[,;|]", self._take("tags")[1]))
        return tuple(dict.fromkeys(filter(None, tags)))

    def _cnpj(self) -> str | None:
        column, value = self._take("cnpj")
        if not value:
            return None
        # Spreadsheets drop the zeros at the front of what looks like a number, and may add ".0" at its end.
        digits = re.sub(r"[\s./-]", "", re.sub(r"\.0$", "", _clean(value))).upper().zfill(14)
        # From July 2026 on, the first twelve may be letters too.
        if not re.fullmatch(r"[0-9A-Z]{12}[0-9]{2}", digits) or len(set(digits)) == 1:
            self._complain(column, value, "is not a CNPJ: write its 14 characters, such as 11.222.333/0001-81.")
        elif _cnpj_check_digits(digits[:12]) != digits[12:]:
            self._complain(
                column,
                value,
                "has wrong check digits for a CNPJ: compare it with a right one, such as 11.222.333/0001-81.",
            )
        return _format_cnpj(digits)

    def _custom_fields(self) -> dict[str, str]:
        """Collect the cells that no field took, under their headings; a heading that comes again is numbered."""
        headings = self._columns.headings
        custom: dict[str, str] = {}
        for index, value in enumerate(self._cells):
            if not value or index in self._taken:
                continue
            heading = headings[index] if index < len(headings) else ""
            if not heading:
                self._complain(
                    f"column {index + 1}",
                    value,
                    f"has no heading: the header names {sum(map(bool, headings))} columns, "
                    f"so head this one too, or quote the cell that contains {self._columns.delimiter!r}.",
                )
                continue
            name, number = _BUSINESS_FIELDS_BY_HEADING.get(_fold(heading), heading), 1
            unique = name
            while unique in custom:
                number += 1
                unique = f"{name} ({number})"
            custom[unique] = value
        return custom


def _phone_key(text: str) -> str | None:
    """Give the number in full international digits, the same however it is written; None if it is not one number.

    An old eight-digit mobile number counts as the same number with its ninth digit, as WhatsApp has it.
    """
    compact = re.sub(r"[\s().\-\u2010-\u2015]", "", re.sub(r"^(\d{10,15})\.0$", r"\1", text))
    match = re.fullmatch(r"(\+|00)?([0-9]+)", compact)
    if match is None:
        return None
    international, digits = match.groups()
    if international and not digits.startswith("55"):
        return digits if 8 <= len(digits) <= 15 else None
    # Without a plus, 55 may also be the area code of Santa Maria: the length tells.
    national = digits[2:] if international or (digits.startswith("55") and len(digits) in {12, 13}) else digits
    # Long-distance prefix: 0, or 0 and the two digits of a carrier.
    national = re.sub(r"^0(?:\d\d(?=\d{10,11}$))?", "", national)
    match = re.fullmatch(r"(\d\d)(9\d{8}|[2-9]\d{7})", national)
    if match is None or match[1] not in _AREA_CODES:
        return None
    area, subscriber = match.groups()
    ninth = "9" if len(subscriber) == 8 and subscriber[0] in "6789" else ""
    return f"55{area}{ninth}{subscriber}"


_AMOUNTS = (
    # Pattern, the marks that group thousands, the decimal mark. The first that fits counts: 1.234 is over a thousand.
    (re.compile(r"[0-9]{1,3}(?:[. ][0-9]{3})+(?:,[0-9]{1,2})?"), ". ", ","),
    (re.compile(r"[0-9]+(?:,[0-9]{1,2})?"), "", ","),
    (re.compile(r"[0-9]+\.[0-9]{1,2}"), "", "."),
    (re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+\.[0-9]{1,2}"), ",", "."),
    (re.compile(r"[0-9]{1,3}(?:,[0-9]{3}){2,}"), ",", "."),
)


def _amount(text: str) -> Decimal | None:
    """Read an amount that is not negative; None where it is none or its marks may be read in two ways (`1,234`)."""
    for pattern, grouping, decimal_mark in _AMOUNTS:
        # 0.125 is three decimals, not the thousands that 1.234 would be.
        if pattern.fullmatch(text) and not (grouping and text.startswith("0")):
            return Decimal(text.translate(str.maketrans("", "", grouping)).replace(decimal_mark, "."))
    return None


def _cnpj_check_digits(base: str) -> str:
    """Compute the two check digits of a CNPJ's first twelve characters (digits, or capital letters since 2026)."""
    digits = ""
    for _ in range(2):
        # Weights 2 to 9 from the right, over and over; a letter counts as its distance from "0" in ASCII.
        total = sum((ord(char) - 48) * (2 + place % 8) for place, char in enumerate(reversed(base + digits)))
        digits += str((11 - total % 11) % 11 % 10)
    return digits


def _format_cnpj(digits: str) -> str:
    return f"{digits[:2]}.{digits[2:5]}.{digits[5:8]}/{digits[8:12]}-{digits[12:]}"


def _clean(text: str) -> str:
    """Bring a number to plain characters.

    What is pasted from WhatsApp has direction marks, from a page wide spaces; spreadsheets write `'119…` or `="119…"`
    to keep a number as text.
    """
    plain = unicodedata.normalize("NFKC", text)
    return "".join(char for char in plain if unicodedata.category(char) != "Cf").strip("='\" \t\r\n")


def _fold(heading: str) -> str:
    """Reduce a heading or word to its letters and digits, without case, accents and spaces."""
    decomposed = unicodedata.normalize("NFKD", heading.casefold())
    return "".join(char for char in decomposed if char.isalnum())


def _slug(text: str) -> str:
    """Write a name as a host name does."""
    decomposed = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", decomposed).strip("-")


def _shown(value: str, limit: int = _SHOWN_CHARS) -> str:
    """Quote a value for a sentence, on one line and not too long."""
    flat = " ".join(value.split())
    return repr(flat if len(flat) <= limit else flat[: limit - 1] + "…")


_FIELDS_BY_HEADING = {
    _fold(heading): (name, rank) for name, headings in _SYNONYMS.items() for rank, heading in enumerate(headings)
}
_BUSINESS_FIELDS_BY_HEADING = {_fold(name): name for name in BUSINESS_FIELDS}
_PRIORITIES_BY_WORD = {_fold(word): priority for word, priority in _PRIORITY_WORDS.items()}
