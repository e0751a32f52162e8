"""The settings of `campaign.yaml`. The JSON Schema beside this file is generated from these classes."""

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
    """The persona in whose name the texts are written."""

    name: Text = "Assistente"
    """The agent's name in the CRM; leads see it only if the instructions mention it."""
    instructions: LongText | None = None
    """Who writes, for whom and in which tone. Every prompt of the workspace begins with it."""


class Workspace(_Part):
    """The tenant, which owns inboxes, leads and campaigns."""

    name: Text
    """The workspace's name. A workspace that does not exist is created."""
    timezone: Zone = DEFAULT_ZONE
    """Time zone of its day, for the daily spending limit."""
    model: Text = Field(examples=["openai/gpt-4o-mini"])
    """The language model, by OpenRouter's name."""
    fallback_models: list[Text] = []
    """Used in this order if the model cannot answer."""
    persona: Persona = Persona()
    max_cost_usd_per_day: Dollars | None = None
    """Most US dollars per day for texts. Default: no limit."""
    one_message_per_lead_per_day: bool = False
    """Whether a lead's second message of a day, of any campaign, waits for the next day."""
    number_rest_hours: int = Field(default=24, ge=0, le=720)
    """Hours in which a number gets at most one campaign message; 0: no limit."""


class Pace(_Part):
    """Rate limits of an inbox, for all its campaigns together."""

    min_gap_seconds: float | None = Field(default=None, gt=0, le=86_400)
    """Least seconds between two messages."""
    jitter: float = Field(default=0.2, ge=0, le=5)
    """Each gap is extended by a random share, up to this one."""
    hourly_limit: int | None = Field(default=None, ge=1)
    """Most messages in any 60 minutes."""
    daily_limit: int | None = Field(default=None, ge=1)
    """Most messages per day."""
    warm_up_from: date | None = Field(default=None, examples=["2026-12-01"])
    """First day of a new number. Its daily limit begins low and rises every few days."""
    pause_after: int | None = Field(default=None, ge=1)
    """Number of messages before a rest of `pause_seconds`."""
    pause_seconds: float | None = Field(default=None, gt=0, le=86_400)
    """Length of a rest in seconds."""
    quiet_from: time | None = Field(default=None, examples=["21:00"])
    """Begin of the quiet hours, in local time. No message is started in them."""
    quiet_until: time | None = Field(default=None, examples=["08:00"])
    """End of the quiet hours. If it is earlier than the begin, they last over midnight."""
    timezone: Zone = DEFAULT_ZONE
    """Time zone of its days and quiet hours."""

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
    """The sender of e-mails. The server and the password are in the variable that `key_variable` names."""

    from_address: Text | None = Field(default=None, examples=["clara@aurora.example"])
    """Sender's address."""
    from_name: Text | None = None
    """Sender's name."""
    reply_to: Text | None = None
    """Address for replies."""
    unsubscribe_url: Text | None = None
    """https URL with {message_id} and {email} for unsubscribing with one click."""
    unsubscribe_mailto: Text | None = None
    """mailto address for unsubscribing."""


class Inbox(_Part):
    """A WhatsApp number or a mailbox."""

    name: Text
    """The inbox's name, used by campaigns."""
    provider: Literal["evolution", "uazapi", "cloud_api", "smtp"]
    """The service that it sends through."""
    instance: Text | None = None
    """The number's name at the provider, such as Evolution's instance. Default: `name`."""
    key_variable: str | None = Field(default=None, examples=["EVOLUTION_API_KEY_VENDAS"])
    """Name of the environment variable with this inbox's key (for smtp: with its URL). It begins like the provider's
    other variables. Default: EVOLUTION_API_KEY, UAZAPI_TOKEN, CLOUD_API_TOKEN or SMTP_URL. Never write the key itself
    here."""
    phone_number_id: str | None = Field(default=None, examples=["123456789012345"])
    """Meta's id of the number; only for cloud_api."""
    sender: Sender | None = None
    """The sender of e-mails; only for smtp."""
    pace: Pace | None = None
    """Rate limits. Default: none."""

    @model_validator(mode="after")
    def _fits_its_provider(self) -> "Inbox":
        if self.key_variable is not None:
            prefix = KEY_VARIABLES[self.provider].prefix
            # Not quoted: somebody may have put the key itself there.
            if not (self.key_variable.isascii() and self.key_variable.isidentifier() and self.key_variable.isupper()):
                raise ValueError("has a key_variable that is not a variable's name; write the name, not the key")
            if not self.key_variable.startswith(prefix):
                raise ValueError(f"has a key_variable that does not begin with {prefix}, as its provider requires")
        if (self.provider == "cloud_api") != (self.phone_number_id is not None):
            raise ValueError("needs phone_number_id if its provider is cloud_api, and only then")
        if self.sender is not None and self.provider != "smtp":
            raise ValueError("has a sender, which is only for the provider smtp")
        return self


class LeadSource(_Part):
    """The leads of a campaign, by their place in the sales funnel."""

    funnel: Text = "Prospecção"
    """The funnel's name. A funnel that does not exist is created."""
    column: Text = "Novos"
    """The column that leads are taken from."""
    moved_to: Text = "Contatados"
    """The column that a lead moves to after its message was sent."""
    tags: list[Text] = []
    """Only leads with one of these tags. Default: all leads of the column."""

    @model_validator(mode="after")
    def _moves(self) -> "LeadSource":
        if self.column == self.moved_to:
            raise ValueError(f"moves leads from {self.column!r} to the same column; write another one in moved_to")
        return self


class Window(_Part):
    """The sending window of a campaign."""

    opens: time = Field(default=time(9), alias="from", examples=["09:00"])
    """Local time at which it opens."""
    closes: time = Field(default=time(18), alias="until", examples=["18:00"])
    """Local time at which it closes. If it is earlier than `from`, the window lasts over midnight."""
    timezone: Zone = DEFAULT_ZONE
    weekdays: Annotated[list[Weekday], Field(min_length=1)] = ["mon", "tue", "wed", "thu", "fri"]
    """Days on which it opens."""
    holidays: list[date] = Field(default=[], examples=[["2026-12-25", "2027-01-01"]])
    """Days on which it does not open."""


class Review(_Part):
    """The first texts of each run wait until a person approves them."""

    first_n: int = Field(ge=1, le=10_000)


class Template(_Part):
    """The Cloud API's approved template, for leads who have not written within 24 hours."""

    name: Text
    language: Text = "pt_BR"
    variables: list[Text] = []
    """The purposes of {{1}}, {{2}}, …; the model writes their values."""
    body: LongText | None = None
    """The template's text with {{1}}, {{2}}, …, for the model and the chat."""


class Campaign(_Part):
    """A campaign: what is written, to whom, through which inbox and when."""

    name: Text
    inbox: Text
    """The name of an inbox of this file."""
    instructions: LongText
    """The prompt's instructions: the offer, the tone, the question to ask."""
    leads: LeadSource = LeadSource()
    window: Window = Window()
    interval_seconds: int = Field(default=120, ge=0, le=86_400)
    """Least seconds between two messages of this campaign."""
    daily_limit: int = Field(default=50, ge=1, le=1_000_000)
    """Most messages of this campaign per day."""
    max_cost_usd_per_run: Dollars | None = None
    """Most US dollars per run for texts. Default: no limit."""
    split: bool = False
    """Whether a text is sent in several parts."""
    max_parts: int = Field(default=3, ge=1, le=10)
    """Most parts of a text."""
    review: Literal["none", "all"] | Review = Field(default="none", examples=["none", "all", {"first_n": 10}])
    """The texts that a person approves before they are sent: none, all, or the first ones of each run."""
    fallback_inboxes: list[Text] = []
    """Inboxes to use, in this order, while its own is down. Default: messages wait."""
    template: Template | None = None
    active: bool = True
    """Whether the campaign is switched on."""


class CampaignFile(_Part):
    """A workspace with its inboxes and campaigns."""

    workspace: Workspace
    inboxes: Annotated[list[Inbox], Field(min_length=1)]
    campaigns: Annotated[list[Campaign], Field(min_length=1)]


def json_schema() -> dict[str, Any]:
    """Return the file's JSON Schema, for editors."""
    schema = CampaignFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
