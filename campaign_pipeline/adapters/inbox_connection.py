"""How an inbox is reached, as the database says: the row of its instance, keys included."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import UUID


@dataclass(frozen=True)
class InboxConnection:
    """A row of the statement `get_inbox_connection`. Nothing that may hold a key is in its repr.

    The CRM's two JSON columns may have any shape, so whoever reads them looks at what it finds.
    """

    inbox_id: UUID | None = None
    workspace_id: UUID | None = None
    instance_id: UUID | None = None
    name: str | None = None
    provider: str | None = None  # whatsapp, email
    provider_type: str | None = None  # which adapter
    api_key: str | None = field(default=None, repr=False)
    instance_token: str | None = field(default=None, repr=False)
    phone_number: str | None = field(default=None, repr=False)
    status: str | None = None
    settings: Any = field(default=None, repr=False)
    provider_config: Any = field(default=None, repr=False)
    openrouter_api_key: str | None = field(default=None, repr=False)  # of its workspace

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Build from the statement's row, which has these columns and no other."""
        return cls(**row)

    @property
    def key(self) -> str | None:
        """The instance's own key."""
        return self.instance_token or self.api_key

    def setting(self, name: str) -> str | None:
        """A text of the instance's provider_config, else of its settings."""
        for column in (self.provider_config, self.settings):
            value = column.get(name) if isinstance(column, dict) else None
            if isinstance(value, str) and value.strip():
                return value.strip()
        return None
