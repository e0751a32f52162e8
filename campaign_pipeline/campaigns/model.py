"""What `campaign.yaml` may declare. The JSON Schema beside this file is made from these classes."""

from datetime import date, time
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from campaign_pipeline.adapters.connection import KEY_VARIABLES
from campaign_pipeline.core.window import DEFAULT_ZONE, InvalidWindow, SendingWindow

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def _known_zone(name: str) -> str:
    try:
        SendingWindow.parse(None, None, name, None)
    except InvalidWindow as error:
        raise ValueError(str(error).removeprefix(f"timezone is {name!r}, ").rstrip(".")) from None
    return name


Text = Annotated[str, Field(min_length=1, max_length=200)]
LongText = Annotated[str, Field(min_length=1, max_length=20_000)]
Zone = Annotated[str, AfterValidator(_known_zone), Field(examples=[DEFAULT_ZONE])]
Dollars = Annotated[float, Field(gt=0, le=1_000_000)]


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        coerce_numbers_to_str=True,
        str_strip_whitespace=True,
        use_attribute_docstrings=True,
    )


class Persona(_Part):
    """In whose name the texts are written."""

    name: Text = "Assistente"
    """What the agent is called in the CRM; leads do not see it unless the instructions say so."""
    instructions: LongText | None = None
    """Who writes, for whom and in which tone; begins every prompt of the workspace, before a campaign's own."""


class Workspace(_Part):
    """The tenant: owns inboxes, leads and campaigns."""

    name: Text
    """Found by this name or, where there is none, made."""
    timezone: Zone = DEFAULT_ZONE
    """Where its day begins and ends, for what it may spend."""
    model: Text = Field(examples=["openai/gpt-4o-mini"])
    """The language model, as OpenRouter names it."""
    fallback_models: list[Text] = []
    """Asked in this order where that model cannot answer."""
    persona: Persona = Persona()
    max_cost_usd_per_day: Dollars | None = None
    """US dollars that the texts of a day may cost; without it there is no limit."""
    one_message_per_lead_per_day: bool = False
    """A second message to a lead, of whichever campaign, waits for the next day."""
    number_rest_hours: int = Field(default=24, ge=0, le=720)
    """Hours in which a number gets at most one campaign message; 0: no limit."""


class Pace(_Part):
    """How fast an inbox may send, all its campaigns together."""

    min_gap_seconds: float | None = Field(default=None, gt=0, le=86_400)
    """Seconds between two messages, at least."""
    jitter: float = Field(default=0.2, ge=0, le=5)
    """A gap is stretched by up to this share of it, at random."""
    hourly_limit: int | None = Field(default=None, ge=1)
    """Messages in any 60 minutes."""
    daily_limit: int | None = Field(default=None, ge=1)
    """Messages in a day."""
    warm_up_from: date | None = Field(default=None, examples=["2026-12-01"])
    """First day of a new number, which may then send few messages at first and more every few days."""
    pause_after: int | None = Field(default=None, ge=1)
    """After so many messages it rests for `pause_seconds`."""
    pause_seconds: float | None = Field(default=None, gt=0, le=86_400)
    """Seconds that such a rest lasts."""
    quiet_from: time | None = Field(default=None, examples=["21:00"])
    """From this local time on nothing begins, until `quiet_until`."""
    quiet_until: time | None = Field(default=None, examples=["08:00"])
    """The end of the quiet hours; over midnight where it is the earlier."""
    timezone: Zone = DEFAULT_ZONE
    """Of its days and quiet hours."""

    @model_validator(mode="after")
    def _pairs_are_complete(self) -> "Pace":
        if (self.pause_after is None) != (self.pause_seconds is None):
            raise ValueError("needs both pause_after and pause_seconds, or neither")
        if (self.quiet_from is None) != (self.quiet_until is None):
            raise ValueError("needs both quiet_from and quiet_until, or neither")
        if self.quiet_from is not None and self.quiet_from == self.quiet_until:
            raise ValueError("has the same time as quiet_from and quiet_until, so nothing would ever be sent")
        return self


class Sender(_Part):
    """Who an e-mail is from; its server and password are in the variable that `key_variable` names."""

    from_address: Text | None = Field(default=None, examples=["clara@aurora.example"])
    """Address in From."""
    from_name: Text | None = None
    """Name in From."""
    reply_to: Text | None = None
    """Where replies go."""
    unsubscribe_url: Text | None = None
    """An https address with {message_id} and {email}, at which a reader unsubscribes with one click."""
    unsubscribe_mailto: Text | None = None
    """A mailto address to which a reader writes to unsubscribe."""


class Inbox(_Part):
    """A WhatsApp number or a mailbox."""

    name: Text
    """What people call it; campaigns name it."""
    provider: Literal["evolution", "uazapi", "cloud_api", "smtp"]
    """Through which service it sends."""
    instance: Text | None = None
    """The provider's own name for this number, by which Evolution knows it; without it, `name`."""
    key_variable: str | None = Field(default=None, examples=["EVOLUTION_API_KEY_VENDAS"])
    """Name of the environment variable with this inbox's key (for smtp: its whole URL). Begins like its provider's own
    variables. Without it: EVOLUTION_API_KEY, UAZAPI_TOKEN, CLOUD_API_TOKEN, SMTP_URL. The key itself is never written
    here."""
    phone_number_id: str | None = Field(default=None, examples=["123456789012345"])
    """Meta's id of the number; for cloud_api."""
    sender: Sender | None = None
    """For smtp."""
    pace: Pace | None = None
    """Without it the inbox goes as fast as it can."""

    @model_validator(mode="after")
    def _fits_its_provider(self) -> "Inbox":
        if self.key_variable is not None:
            prefix = KEY_VARIABLES[self.provider].prefix
            # Not quoted: somebody may have put the key itself there.
            if not (self.key_variable.isascii() and self.key_variable.isidentifier() and self.key_variable.isupper()):
                raise ValueError("has a key_variable that is no variable's name; name the variable, not the key")
            if not self.key_variable.startswith(prefix):
                raise ValueError(f"has a key_variable that does not begin with {prefix}, as those of its provider do")
        if (self.provider == "cloud_api") != (self.phone_number_id is not None):
            raise ValueError("needs phone_number_id where its provider is cloud_api, and only there")
        if self.sender is not None and self.provider != "smtp":
            raise ValueError("has a sender, which only an inbox of provider smtp has")
        return self


class LeadSource(_Part):
    """Which leads a campaign writes to, by their place in the sales funnel."""

    funnel: Text = "Prospecção"
    """Made where the workspace has none of this name."""
    column: Text = "Novos"
    """The column that leads are taken from."""
    moved_to: Text = "Contatados"
    """The column that a lead moves to when its message was sent."""
    tags: list[Text] = []
    """Only leads with one of these tags; without any, all of the column."""

    @model_validator(mode="after")
    def _moves(self) -> "LeadSource":
        if self.column == self.moved_to:
            raise ValueError(f"moves leads from {self.column!r} to the same column; name another in moved_to")
        return self


class Window(_Part):
    """When a campaign may send."""

    opens: time = Field(default=time(9), alias="from", examples=["09:00"])
    """Local time at which it opens."""
    closes: time = Field(default=time(18), alias="until", examples=["18:00"])
    """Local time at which it closes; over midnight where it is the earlier."""
    timezone: Zone = DEFAULT_ZONE
    weekdays: Annotated[list[Weekday], Field(min_length=1)] = ["mon", "tue", "wed", "thu", "fri"]
    """Days on which it opens."""
    holidays: list[date] = Field(default=[], examples=[["2026-12-25", "2027-01-01"]])
    """Days on which it does not open."""


class Review(_Part):
    """The first texts of each run wait until a person approves them."""

    first_n: int = Field(ge=1, le=10_000)


class Template(_Part):
    """The approved template of the Cloud API for leads who did not write within a day."""

    name: Text
    language: Text = "pt_BR"
    variables: list[Text] = []
    """What {{1}}, {{2}}, … are for; the model writes them."""
    body: LongText | None = None
    """Its text with {{1}}, {{2}}, …, for the model and for the chat."""


class Campaign(_Part):
    """What is written, to whom, through which inbox and when."""

    name: Text
    inbox: Text
    """The name of an inbox above."""
    instructions: LongText
    """What the model shall write: the offer, the tone, what to ask for."""
    leads: LeadSource = LeadSource()
    window: Window = Window()
    interval_seconds: int = Field(default=120, ge=0, le=86_400)
    """Between two messages of this campaign, at least."""
    daily_limit: int = Field(default=50, ge=1, le=1_000_000)
    """Messages of this campaign a day."""
    max_cost_usd_per_run: Dollars | None = None
    """US dollars that the texts of one day's run may cost; without it there is no limit."""
    split: bool = False
    """Whether a text goes out as several bubbles."""
    max_parts: int = Field(default=3, ge=1, le=10)
    """How many bubbles at most."""
    review: Literal["none", "all"] | Review = Field(default="none", examples=["none", "all", {"first_n": 10}])
    """Which texts a person approves before they are sent: none, all, or the first ones of each run."""
    fallback_inboxes: list[Text] = []
    """Inboxes that stand in, in this order, while its own is down; without any, messages wait."""
    template: Template | None = None
    active: bool = True
    """Whether it may send at all."""


class CampaignFile(_Part):
    """A workspace with its inboxes and campaigns."""

    workspace: Workspace
    inboxes: Annotated[list[Inbox], Field(min_length=1)]
    campaigns: Annotated[list[Campaign], Field(min_length=1)]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the file, for editors."""
    schema = CampaignFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
