"""The shard's directory of phone numbers: which have an account, by the provider's cached or current answers."""

from collections.abc import Iterable
from contextlib import suppress

from campaign_pipeline.core.address import InvalidAddress, normalize_phone
from campaign_pipeline.core.campaign_log import CampaignLog
from campaign_pipeline.core.model import Lead, LeasedMessage
from campaign_pipeline.core.numbers import KnownNumber, NumberNote, candidate_numbers
from campaign_pipeline.core.ports import DeliveryStore, MessageChannel, NumberMissing, NumberNotChecked


class NumberDirectory:
    """Per-shard cache over campaign_number_checks."""

    def __init__(self, store: DeliveryStore, channel: MessageChannel, log: CampaignLog) -> None:
        self._store = store
        self._channel = channel
        self._log = log
        self._known: dict[str, KnownNumber] = {}  # cached answers that are still valid
        self._not_checked: set[str] = set()  # numbers that the provider could not check

    async def load(
        self, messages: Iterable[tuple[LeasedMessage, Lead | None]], days: float, missing_days: float
    ) -> None:
        """Read in one statement what is known of all numbers of the shard.

        "Has an account" is cached for `days`, "has none" for `missing_days`.
        """
        wanted: set[str] = set()
        for message, lead in messages:
            with suppress(InvalidAddress):  # it ends this message when its turn comes; the others are looked up
                wanted.update(self._candidates(own_number(message, lead), lead))
        known = await self._store.known_numbers(self._channel.traits.name, sorted(wanted), days, missing_days)
        self._known = {one.number: one for one in known}

    def possible(self, number: str, lead: Lead | None) -> list[str]:
        """Return a lead's numbers that are not known to have no account, in the order in which they are tried."""
        return [one for one in self._candidates(number, lead) if one not in self._known or self._known[one].exists]

    async def why_missing(self, message: LeasedMessage, number: str) -> str | None:
        """Return the provider's reason why the number surely has no account; None if it has one, or nobody knows."""
        # possible() filtered out the numbers cached as missing. A number that could not be checked is not asked again:
        # a provider that takes long to give no answer would let no message leave in time.
        if number in self._known or number in self._not_checked or not self._channel.traits.number_check:
            return None
        answer = await self._channel.check_number(number)
        if isinstance(answer, NumberNotChecked):
            self._not_checked.add(number)
            text = f"The number could not be checked before sending. {answer.reason}"
            self._log(message, "prepare", "warning", text)
            return None
        if isinstance(answer, NumberMissing):
            return answer.reason
        self._note(message, KnownNumber(number, True, answer.number, answer.jid, answer.lid), reachable=True)
        return None

    def note_missing(self, message: LeasedMessage, number: str, *, last: bool) -> None:
        """Record that a number has no account and, if it is the last one, that its lead cannot be reached."""
        self._note(message, KnownNumber(number, False), reachable=False if last else None)

    def _note(self, message: LeasedMessage, known: KnownNumber, *, reachable: bool | None) -> None:
        self._known[known.number] = known
        self._store.note_number(self._channel.traits.name, NumberNote(known, message.lead_id, reachable))

    @staticmethod
    def _candidates(number: str, lead: Lead | None) -> tuple[str, ...]:
        return candidate_numbers(number, lead.other_phones if lead else ())


def own_number(message: LeasedMessage, lead: Lead | None) -> str:
    """Return the number of a message: its own, else its lead's. Raises InvalidAddress."""
    return normalize_phone(message.phone_number or (lead.phone if lead else None))
