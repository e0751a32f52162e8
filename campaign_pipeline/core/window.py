"""When a campaign may send: a daily window in the campaign's own time zone.

All instants are aware datetimes. A naive one is refused: a local time that is taken for UTC would close São Paulo's
windows three hours late.

A wall time means the first instant at which the local clock shows it *or has passed it*. So a wall time that the clocks
skip is the first instant after the gap, and one that they show twice is its first occurrence, for opening and closing
alike. During a repeated hour the window therefore stays as it was when the clocks went back: a window that opens and
closes inside that hour does not open a second time. This definition keeps wall times in order, so openings cannot
overlap or run backwards. A window that lies wholly inside a gap does not open on that day.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from difflib import get_close_matches
from functools import lru_cache
from itertools import count
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

DEFAULT_ZONE: Final = "America/Sao_Paulo"
LOOK_BACK: Final = timedelta(days=60)  # the longest time that a message waits, whatever its window

_MIDNIGHT: Final = time(0)
_DAY: Final = timedelta(days=1)
_SECOND: Final = timedelta(seconds=1)
_ZERO: Final = timedelta(0)
_SATURDAY: Final = 5
_EVERY_DAY: Final = frozenset(range(1, 8))
_CLOCK_TEXT: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9]))?", re.ASCII)


class InvalidWindow(ValueError):
    """A campaign's window is invalid. The message is one sentence for the operator."""


@dataclass(frozen=True)
class SendingWindow:
    """The half-open span `[start, end)` of each day in which a campaign may send.

    * Neither start nor end, or both equal: open all day, from one local midnight to the next.
    * Only one of them: the other is midnight.
    * Start after end: the window spans midnight. It belongs to the local day on which it opens, so with
      `weekdays_only` Friday's 22:00-06:00 lasts into Saturday, and Sunday's does not open. The same holds for
      `weekdays`, which lists the days that open, and for `holidays`, which do not.
    """

    start: time | None
    end: time | None
    zone: ZoneInfo
    weekdays_only: bool = False
    weekdays: frozenset[int] | None = None  # ISO: 1 Monday to 7 Sunday; None: by weekdays_only
    holidays: frozenset[date] = frozenset()

    @classmethod
    def parse(
        cls,
        start: time | str | None,
        end: time | str | None,
        timezone: str | None,
        frequency: str | None,
        weekdays: Iterable[int] | None = None,
        holidays: Iterable[date | str] | None = None,
    ) -> "SendingWindow":
        """Parse the columns of a campaign; raises InvalidWindow rather than using a default.

        Times are `datetime.time` or `HH:MM[:SS]` (`24:00` is accepted as an end). No time zone means
        America/Sao_Paulo, the column's default; no frequency means daily. Weekdays override the frequency.
        """
        if frequency not in (None, "daily", "weekdays"):
            raise InvalidWindow(f"frequency is {_shown(frequency)}, but must be 'daily' or 'weekdays'.")
        end = _MIDNIGHT if end in ("24:00", "24:00:00") else end
        return cls(
            _clock("start_time", start),
            _clock("end_time", end),
            _zone(timezone),
            frequency == "weekdays",
            None if weekdays is None else _weekdays(weekdays),
            frozenset(_day(each) for each in holidays or ()),
        )

    def is_open(self, now: datetime) -> bool:
        """Return whether sending is allowed at this instant."""
        instant = _utc(now)
        return self._always or self._next(instant)[0] <= instant

    def next_opening(self, now: datetime) -> datetime:
        """Return `now` if open, otherwise the next open instant, in UTC."""
        instant = _utc(now)
        if self._always:
            return now
        opens, _ = self._next(instant)
        return now if opens <= instant else opens

    def closes_at(self, now: datetime) -> datetime | None:
        """Return the end of the current opening in UTC.

        None if it never closes, or if it is not open.
        Adjoining openings, such as the working days of a window open all day, count as one.
        """
        instant = _utc(now)
        if self._always:
            return None
        opens, closes = self._next(instant)
        if opens > instant:
            return None
        while (following := self._next(closes))[0] <= closes:
            closes = following[1]
            if self._never_closes_after(closes.astimezone(self.zone).date()):
                return None
        return closes

    def open_time_between(self, a: datetime, b: datetime) -> timedelta:
        """Return how much of the real time from `a` to `b` was open; zero if `b` is not after `a`."""
        since, until = _utc(a), _utc(b)
        if until <= since:
            return _ZERO
        if self._always:
            return until - since
        total = _ZERO
        for opens, closes in self._openings_from(since):
            if opens >= until:
                break
            total += max(_ZERO, min(closes, until) - max(opens, since))
        return total

    def age_cutoff(self, now: datetime, max_age: timedelta) -> datetime:
        """Return the latest instant from which `max_age` of open time has passed until `now`, in UTC.

        Messages due before it are too old; closed hours do not age a message. Looks back no further than LOOK_BACK, and
        returns that bound if it finds nothing. Raises ValueError for a negative age.
        """
        if max_age < _ZERO:
            raise ValueError(f"max_age is {max_age}, but must not be negative.")
        instant = _utc(now)
        bound = instant - LOOK_BACK
        if max_age >= LOOK_BACK:  # open time never passes faster than real time
            return bound
        if self._always or not max_age:
            return instant - max_age
        left = max_age
        for opens, closes in self._openings_back(instant):
            if closes <= bound:
                break
            length = min(closes, instant) - opens
            if length >= left:
                return max(bound, opens + length - left)
            left -= max(_ZERO, length)
        return bound

    @property
    def _all_day(self) -> bool:
        return (self.start or _MIDNIGHT) == (self.end or _MIDNIGHT)

    @property
    def _always(self) -> bool:
        return self._never_closes_after(date.min)

    def _never_closes_after(self, day: date) -> bool:
        """Return whether every day from this one on is open from midnight to midnight."""
        every_day = not self.weekdays_only if self.weekdays is None else self.weekdays == _EVERY_DAY
        return self._all_day and every_day and all(holiday < day for holiday in self.holidays)

    def _opens_on(self, day: date) -> bool:
        if day in self.holidays:
            return False
        if self.weekdays is not None:
            return day.isoweekday() in self.weekdays
        return not (self.weekdays_only and day.weekday() >= _SATURDAY)

    def opening(self, day: date) -> tuple[datetime, datetime] | None:
        """Return start and end, in UTC, of the opening that belongs to a local day; None if it has none."""
        if not self._opens_on(day):
            return None
        if self._all_day:
            start = end = _MIDNIGHT
        else:
            start, end = self.start or _MIDNIGHT, self.end or _MIDNIGHT
        opens = _instant(self.zone, day, start)
        closes = _instant(self.zone, day if start < end else day + _DAY, end)
        return (opens, closes) if opens < closes else None  # false if the clocks skip the whole opening

    def _openings_from(self, instant: datetime) -> Iterator[tuple[datetime, datetime]]:
        """Yield openings in order without end, starting on the day before, whose opening may span midnight."""
        today = instant.astimezone(self.zone).date()
        for offset in count(-1):
            if opening := self.opening(today + offset * _DAY):
                yield opening

    def _openings_back(self, instant: datetime) -> Iterator[tuple[datetime, datetime]]:
        """Yield openings backwards without end, starting on the day after: clocks that go back may have begun it."""
        today = instant.astimezone(self.zone).date()
        for offset in count(-1):
            if opening := self.opening(today - offset * _DAY):
                yield opening

    def _next(self, instant: datetime) -> tuple[datetime, datetime]:
        """Return the first opening that ends after an instant: the current one if open."""
        return next(opening for opening in self._openings_from(instant) if opening[1] > instant)


def _utc(instant: datetime) -> datetime:
    """Convert an instant to UTC, so that differences are real time. Raises ValueError for a naive one."""
    if instant.utcoffset() is None:
        raise ValueError(f"{instant!r} has no time zone, so it is not an instant.")
    return instant.astimezone(UTC)


@lru_cache(maxsize=32_768)  # campaigns share zones and hours: two hundred in one installation
def _instant(zone: ZoneInfo, day: date, wall: time) -> datetime:
    """Return the first instant at which the local clock shows a wall time or has passed it, in UTC."""
    local = datetime.combine(day, wall, tzinfo=zone)
    before, after = _offset(local), _offset(local.replace(fold=1))
    naive = local.replace(tzinfo=UTC)
    if before >= after:  # shown once; or twice, and then `before` is the first time
        return naive - before
    # The clocks skip it. The change lies between the two readings; zoneinfo does not expose it, so search for it.
    early, late = naive - after, (naive - before).replace(microsecond=0)
    early = early.replace(microsecond=0)
    while late - early > _SECOND:
        middle = (early + (late - early) / 2).replace(microsecond=0)
        if _offset(middle.astimezone(zone)) == before:
            early = middle
        else:
            late = middle
    return late


def _offset(moment: datetime) -> timedelta:
    offset = moment.utcoffset()
    assert offset is not None  # ZoneInfo always has an offset for a full datetime
    return offset


def _clock(field: str, value: time | str | None) -> time | None:
    if value is None:
        return None
    if isinstance(value, str) and (match := _CLOCK_TEXT.fullmatch(value)):
        hour, minute, second = (int(digits or 0) for digits in match.groups())
        return time(hour, minute, second)
    if isinstance(value, time) and value.tzinfo is None:
        return value
    raise InvalidWindow(f"{field} is {_shown(value)}, but must be a time of day such as '08:30' or '18:00:00'.")


def _weekdays(given: Iterable[int]) -> frozenset[int]:
    days = frozenset(given)
    if not days or not days <= {1, 2, 3, 4, 5, 6, 7}:
        raise InvalidWindow(f"weekdays is {_shown(sorted(days))}, but must have numbers from 1 (Monday) to 7 (Sunday).")
    return days


def _day(given: date | str) -> date:
    if isinstance(given, date):
        return given
    try:
        return date.fromisoformat(given)
    except ValueError:
        raise InvalidWindow(f"holidays has {_shown(given)}, but must have days such as '2026-12-25'.") from None


def _zone(name: str | None) -> ZoneInfo:
    if name is None:
        return ZoneInfo(DEFAULT_ZONE)
    try:
        if name != "localtime":  # it would be the machine's own zone
            return ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError):
        pass  # unknown; not a name; a folder of zones such as 'America'; not a text
    near = get_close_matches(name, _zone_names(), n=1) if isinstance(name, str) else []
    raise InvalidWindow(
        f"timezone is {_shown(name)}, which is not a known time zone; "
        + (f"did you mean '{near[0]}'?" if near else f"use a name such as '{DEFAULT_ZONE}'.")
    )


@lru_cache(maxsize=1)
def _zone_names() -> tuple[str, ...]:
    """List the zones once: reading them takes longer than all windows of a batch."""
    return tuple(sorted(available_timezones()))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
