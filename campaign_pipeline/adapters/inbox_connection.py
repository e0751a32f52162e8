"""The connection settings of an inbox from the database: its instance's row, keys included."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import UUID


@dataclass(frozen=True)
class InboxConnection:
    """A row of the statement `get_inbox_connection`. Fields that may contain a key are not in its repr.

    The CRM's two JSON columns may have any shape, so readers must check what they find.
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
        """Return the instance's own key."""
        return self.instance_token or self.api_key

    def setting(self, name: str) -> str | None:
        """Return a text from the instance's provider_config, else from its settings."""
        for column in (self.provider_config, self.settings):
            value = column.get(name) if isinstance(column, dict) else None
            if isinstance(value, str) and value.strip():
                return value.strip()
        return None
