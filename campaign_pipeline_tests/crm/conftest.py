"""The CRM's database: created once per test run, copied for each test."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql as names

from campaign_pipeline.adapters import schema
from campaign_pipeline.adapters.embedded import EmbeddedServer
from campaign_pipeline_tests.crm import OWNER, Crm, load_crm, make_roles, url_as
from campaign_pipeline_tests.databases import Databases

TEMPLATE = "crm_template"
ATTACHED_TEMPLATE = "crm_attached_template"
_LOCK = 4_711_009


@pytest.fixture(scope="session")
def crm_templates(server: EmbeddedServer) -> None:
    """Two templates: the CRM without us, and with our schema, upgraded by its owner."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as admin:
        make_roles(admin)
        admin.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
        there = {row[0] for row in admin.execute("SELECT datname FROM pg_database")}
        if TEMPLATE not in there:
            _create(admin, TEMPLATE, "template0")
            load_crm(server.url(TEMPLATE))
        if ATTACHED_TEMPLATE not in there:
            _create(admin, ATTACHED_TEMPLATE, TEMPLATE)
            schema.upgrade(url_as(server.url(ATTACHED_TEMPLATE), OWNER))


def _create(admin: "psycopg.Connection[tuple[object, ...]]", name: str, template: str) -> None:
    # Owned by the CRM's owner, as on Supabase.
    admin.execute(
        names.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {} STRATEGY file_copy").format(
            names.Identifier(name), names.Identifier(OWNER), names.Identifier(template)
        )
    )


@pytest.fixture
def bare_crm_url(server: EmbeddedServer, databases: Databases, crm_templates: None) -> Iterator[str]:
    """A CRM's database without our objects, as its owner."""
    with databases.create(TEMPLATE, OWNER) as name:
        yield url_as(server.url(name), OWNER)


@pytest.fixture
def crm_url(server: EmbeddedServer, databases: Databases, crm_templates: None) -> Iterator[str]:
    """A CRM's database with our schema, as its owner."""
    with databases.create(ATTACHED_TEMPLATE, OWNER) as name:
        yield url_as(server.url(name), OWNER)


@pytest.fixture
def bare_crm(bare_crm_url: str) -> Iterator[Crm]:
    """The CRM without our objects."""
    with Crm(bare_crm_url) as crm:
        yield crm


@pytest.fixture
def crm(crm_url: str) -> Iterator[Crm]:
    """The CRM with our schema."""
    with Crm(crm_url) as crm:
        yield crm


@pytest.fixture
def database_url(crm_url: str) -> str:
    """Return the settings that `environment` gives the pipeline, in this folder."""
    return crm_url
