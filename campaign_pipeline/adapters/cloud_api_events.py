"""Status events of the Cloud API: the result of a part after Meta accepted it."""

import re
from collections.abc import Mapping
from typing import Any

from campaign_pipeline.adapters.cloud_api_answers import CODES
from campaign_pipeline.adapters.http import at
from campaign_pipeline.core.ports import (
    UNRECOGNISED,
    Outcome,
    Permanent,
    StatusEvent,
    Systemic,
    Throttled,
    Transient,
)

_KEY = re.compile(r"(?P<message>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):(?P<part>[1-9][0-9]{0,3})")
_STATUSES = frozenset({"sent", "delivered", "read", "failed"})
_CLASSES: Mapping[type[Outcome], str] = {
    Permanent: "permanent",
    Transient: "transient",
    Throttled: "throttled",
    Systemic: "systemic",
}


def read_status(event: Any) -> StatusEvent | None:
    """Read one element of a webhook's `statuses[]`; None if it is not about a part of ours."""
    key, status = at(event, "biz_opaque_callback_data"), at(event, "status")
    found = _KEY.fullmatch(key) if isinstance(key, str) else None
    if found is None or not isinstance(status, str) or status not in _STATUSES:
        return None
    provider_id, stamp = at(event, "id"), at(event, "timestamp")
    seconds = float(stamp) if isinstance(stamp, str | int) and re.fullmatch(r"[0-9]{1,11}", str(stamp)) else None
    error_class, code, reason = _failed(event) if status == "failed" else (None, None, None)
    return StatusEvent(
        message_id=found["message"],
        part_no=int(found["part"]),
        provider_message_id=provider_id if isinstance(provider_id, str) and provider_id else None,
        status=status,
        at=seconds,
        error_class=error_class,
        code=code,
        reason=reason,
    )


def _failed(event: Any) -> tuple[str, str, str]:
    """Return class, code and sentence of a failed delivery."""
    code = at(event, "errors", 0, "code")
    _, row = CODES.get(code, (None, None)) if isinstance(code, int) and not isinstance(code, bool) else (None, None)
    if row is None or row.outcome not in _CLASSES:
        shown = code if isinstance(code, int) else "none"
        reason = f"Meta could not deliver it, for a reason that no row of the table knows (code {shown})."
        return "permanent", UNRECOGNISED, reason
    return _CLASSES[row.outcome], row.code, row.sentence
