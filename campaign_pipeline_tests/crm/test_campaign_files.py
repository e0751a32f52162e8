"""Campaign files and imports on the CRM's own tables."""

import pytest

from campaign_pipeline.campaigns.applying import apply_campaign_file
from campaign_pipeline.campaigns.importing import import_leads
from campaign_pipeline.campaigns.reading import CampaignFileError, parse_campaign_file
from campaign_pipeline.leads import Lead
from campaign_pipeline_tests.crm import Crm

TEXT = """
workspace: {{name: "{name}", model: openai/gpt-4o-mini}}
inboxes: [{{name: Novo, provider: evolution}}]
campaigns: [{{name: Primeiro contato, inbox: Novo, instructions: Apresente-se.}}]
"""


def test_the_crms_workspace_gets_its_one_campaign_and_leads(crm: Crm) -> None:
    name = crm.value("SELECT w.name FROM workspaces w JOIN campaign_configs c ON c.workspace_id = w.id LIMIT 1")
    file = parse_campaign_file(TEXT.format(name=name))
    assert apply_campaign_file(crm.url, file, {}, check=False).changes
    assert apply_campaign_file(crm.url, file, {}, check=False).changes == []
    campaign = crm.value(
        "SELECT c.ai_instructions FROM campaign_configs c JOIN workspaces w ON w.id = c.workspace_id WHERE w.name = %s",
        name,
    )
    assert campaign == "Apresente-se."
    lead = Lead("Ana", phone="5511987650001", custom_fields={"Bairro": "Centro"})
    assert import_leads(crm.url, [lead], [2], name, "Primeiro contato").added == 1
    assert import_leads(crm.url, [lead], [2], name, "Primeiro contato").known == [2]


def test_a_value_that_the_crm_cannot_store_is_one_sentence(crm: Crm) -> None:
    with pytest.raises(CampaignFileError, match="In this CRM each needs an owner"):
        apply_campaign_file(crm.url, parse_campaign_file(TEXT.format(name="Nobody's")), {}, check=False)
