"""Generated leads: realistic people and companies of Brazil.

They are fictitious and their domains end in `.example`, which never resolves (RFC 2606). Their telephone and CNPJ
numbers are well formed and may by chance exist: they are for the sandbox, not for a real provider.
"""

import json
import random
import re
import unicodedata
from dataclasses import dataclass, replace
from decimal import Decimal

from campaign_pipeline.leads import BUSINESS_FIELDS, PRIORITIES, Lead
from campaign_pipeline.leads.values import cnpj_check_digits, format_cnpj

TROUBLE_EVERY = 20
"""Each full block of this many leads has exactly one difficult lead (5 %), at a random position."""

LONG_NOTE_CHARS = 8_000
"""Least length of a difficult lead's note."""


@dataclass(frozen=True)
class _City:
    name: str
    state: str  # UF
    area_code: str  # DDD
    weight: int = 1  # relative frequency


@dataclass(frozen=True)
class _Trade:
    category: str
    cnae: str
    company_prefixes: tuple[str, ...]
    median_deal: int  # reais
    site_share: float  # share of these companies with a website


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

# Legal size, its share among companies, and its share capital (reais, lowest and highest).
_SIZES = (
    ("Microempresa (ME)", 60, 5_000, 100_000),
    ("Empresa de Pequeno Porte (EPP)", 30, 50_000, 500_000),
    ("Demais", 10, 300_000, 5_000_000),
)
_DEAL_SIGMA = 0.8  # of the logarithm: about two thirds of the deals lie between 0.45 and 2.2 times the median


def make_leads(count: int, seed: int) -> list[Lead]:
    """Generate realistic Brazilian leads. A seed always gives the same leads; a longer batch begins with a shorter one.

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
    """Draws the leads of one batch from one random generator."""

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
        """Draw digits from `low` to `high` that this batch has not used with this prefix."""
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
        return format_cnpj(base + cnpj_check_digits(base))

    def _deal_value(self, trade: _Trade) -> Decimal | None:
        """Draw a log-normal value around the trade's median; every tenth lead has none."""
        factor = self._rng.lognormvariate(0, _DEAL_SIGMA)
        if self._happens(0.1):
            return None
        # Most quotes are multiples of ten reais.
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
        # Each value, and the share of leads that have it: enrichment tools never find everything.
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
        """Draw other custom fields: short texts, and JSON of an enrichment tool."""
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
        """Give a lead the next kind of difficulty."""
        kind = block % 4
        if kind == 0:
            return replace(lead, phone=None)
        if kind == 1:
            return replace(lead, phone=self._phone_with_letters(lead.phone or ""))
        if kind == 2:
            return replace(lead, client_name=f"{lead.client_name} {self._rng.choice(_EMOJI)}")
        return replace(lead, notes=self._long_note())

    def _phone_with_letters(self, phone: str) -> str:
        """Spoil a number as people and exports do: a typed letter, a masked number, words instead of a number."""
        return self._rng.choice((f"{phone[:-1]}O", f"{phone[:-4]}XXXX", "ver com o sócio"))

    def _long_note(self) -> str:
        note = "Histórico completo da conversa:"
        while len(note) < LONG_NOTE_CHARS:
            note += f"\n{self._rng.randint(1, 28):02}/{self._rng.randint(1, 12):02} - {self._rng.choice(_NOTES)}"
        return note


def _slug(text: str) -> str:
    """Convert a name to a host name label."""
    decomposed = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", decomposed).strip("-")
