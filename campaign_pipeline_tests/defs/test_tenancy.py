"""Two tenants on the real queue, over real HTTP: a message linked to another tenant after the claim is not sent."""

import pytest

from campaign_pipeline_tests.defs.test_shard import Play, Rig, play
from campaign_pipeline_tests.factories import World
from campaign_pipeline_tests.sql.test_tenancy import CROSSINGS, tenant

__all__ = ["play"]  # the fixture


@pytest.mark.parametrize("crossing", ["lead's funnel", "conversation", "target column"])
def test_a_message_that_comes_to_touch_another_tenant_is_skipped_by_its_shard(
    world: World, play: Play, crossing: str
) -> None:
    a, b = tenant(world, "A"), tenant(world, "B")

    async def scenario(rig: Rig) -> None:
        reports = await rig.send(await rig.claim(lambda: CROSSINGS[crossing](world, a, b)))
        crossed, own = rig.message(a.message), rig.message(b.message)
        assert (crossed["status"], crossed["error_code"]) == ("skipped", "foreign_workspace")
        assert crossed["error_message"].endswith("so nothing was sent.")
        assert (own["status"], own["last_error"]) == ("sent", None)
        assert (rig.generations(), len(rig.arrived())) == (1, 1)
        assert sum(report.skipped for report in reports) == 1

    play(scenario)
