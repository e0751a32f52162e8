"""`campaign-pipeline doctor`: check the installation."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

import click

from campaign_pipeline.adapters.environment import DeliverySettings, Environment, OperationsSettings, SettingError
from campaign_pipeline.cli import output
from campaign_pipeline.cli.options import json_option
from campaign_pipeline.cli.process import dagster_home


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check that everything works, one line per check.

    Checks the database, Dagster, the keys and inboxes (at their providers, without sending anything), the disk, and why
    messages wait. Exit code 1 if something stops messages from being sent.
    """
    from campaign_pipeline.adapters.database import named_url
    from campaign_pipeline.adapters.doctor import database_findings, disk_finding
    from campaign_pipeline.adapters.schema import DatabaseUnusable
    from campaign_pipeline.cli.queue import queue_url
    from campaign_pipeline.launch import outside_findings

    environment = Environment.read()
    max_age = DeliverySettings.from_environment().max_age
    overdue = timedelta(minutes=OperationsSettings.from_environment().overdue_minutes)
    rows: list[dict[str, Any]] = []
    with output.console(stderr=True).status("Checking the database and the providers"):
        try:
            # The embedded database is upgraded: nothing else uses it.
            url = queue_url() if environment.database_url is None else named_url(environment)
            rows += [finding.to_dict() for finding in database_findings(url, max_age, overdue)]
        except (SettingError, DatabaseUnusable) as error:
            rows.append({"what": "database", "state": "stops", "found": str(error), "todo": ""})
        variables = {**os.environ, "CAMPAIGN_HOME": str(environment.home)}
        try:
            rows += outside_findings(dagster_home(environment), variables)
        except (SettingError, DatabaseUnusable) as error:
            rows.append({"what": "Dagster", "state": "stops", "found": str(error), "todo": ""})
        rows.append(disk_finding(environment.home).to_dict())
    columns = {"state": "", "what": "what", "found": "found", "todo": "to do"}
    output.show(rows, columns, as_json=as_json, empty="Nothing was checked.")
    stops = sum(row["state"] == "stops" for row in rows)
    if not as_json:
        look = sum(row["state"] == "look" for row in rows)
        click.echo(f"Problems that stop sending: {stops}. Warnings: {look}.")
    sys.exit(1 if stops else 0)


COMMANDS = (doctor,)
