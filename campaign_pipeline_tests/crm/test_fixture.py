from campaign_pipeline_tests.crm import OWNER, Crm


def test_the_crms_owner_is_no_superuser(crm: Crm) -> None:
    assert crm.value("SELECT current_user") == OWNER
    assert not crm.value("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    assert crm.value("SELECT count(*) FROM leads") == 40
