-- Statements for suppression, consent records and number checks.

-- name: skip_refused_messages
-- Of the messages that a batch just leased, end those that reference a row of another workspace, and those whose lead
-- or number is suppressed, in the claim's transaction. Never one with a part that may have been sent: its shard ends
-- it.
UPDATE public.campaign_messages m
SET status = 'skipped', error_code = refused.code, error_message = refused.sentence,
    finished_at = campaign_pipeline.campaign_now(), lease_expires_at = NULL
FROM (SELECT DISTINCT ON (f.id) f.id, f.code, f.sentence
      FROM (SELECT s.message_id AS id, 'foreign_workspace' AS code,
                   campaign_pipeline.campaign_foreign_sentence(s.what, s.row_id) AS sentence
            FROM campaign_pipeline.campaign_foreign_rows(%(message_ids)s) s
            WHERE NOT EXISTS (SELECT 1 FROM campaign_pipeline.campaign_message_parts p
                              WHERE p.message_id = s.message_id AND p.status <> 'planned')
            UNION ALL
            SELECT s.id, 'suppressed',
                   'The lead or its address is suppressed (campaign_suppressions), so nothing was sent.'
            FROM campaign_pipeline.campaign_suppressed_messages(%(message_ids)s) AS s (id)) f
      ORDER BY f.id, f.code) refused
-- The ids are repeated: without them the planner, which expects many refused messages, would scan the whole table.
WHERE m.id = ANY (%(message_ids)s) AND m.id = refused.id
RETURNING m.id, m.error_code AS code;

-- name: hold_contacted_messages
-- Of the messages that a batch just leased, end or postpone those whose number was contacted recently; see
-- campaign_hold_contacted.
SELECT h.message_id AS id, h.skipped FROM campaign_pipeline.campaign_hold_contacted(%(message_ids)s) h;

-- name: drop_past_lead_days
-- Delete expired reservations: of leads' days that are over in every time zone, and of numbers, which rest for at most
-- 30 days.
WITH rested AS (
    DELETE FROM campaign_pipeline.campaign_number_contacts
    WHERE contacted_at < campaign_pipeline.campaign_now() - interval '744 hours'
)
DELETE FROM campaign_pipeline.campaign_lead_days
    WHERE day < ((campaign_pipeline.campaign_now() - interval '72 hours') AT TIME ZONE 'UTC')::date;

-- name: suppress
-- Suppress an address, a lead, or both; by default in the lead's own workspace, with its own number.
SELECT campaign_pipeline.campaign_suppress(%(scope)s::text, CASE WHEN %(scope)s::text <> 'global'
                                           THEN COALESCE(%(workspace_id)s::uuid, l.workspace_id) END,
                         CASE WHEN %(scope)s::text = 'channel' THEN %(channel)s::text END,
                             COALESCE(%(address)s::text, l.phone), %(lead_id)s::uuid, 'by_hand', %(reason)s::text) AS id
FROM (SELECT 1) one LEFT JOIN public.leads l ON l.id = %(lead_id)s::uuid;

-- name: lift
-- Lift the suppressions of an address or a lead.
SELECT campaign_pipeline.campaign_lift(%(workspace_id)s::uuid, %(channel)s::text, %(address)s::text, %(lead_id)s::uuid,
                                       %(by)s::text) AS lifted;

-- name: list_suppressions
-- The active suppressions, the newest first; of one address, lead, workspace or channel if given.
SELECT s.id, s.scope, s.workspace_id, s.channel, s.address, s.lead_id, s.source, s.reason, s.since
FROM campaign_pipeline.campaign_suppressions s
WHERE s.lifted_at IS NULL
  AND (%(workspace_id)s::uuid IS NULL OR s.scope = 'global' OR s.workspace_id = %(workspace_id)s::uuid)
  AND (%(lead_id)s::uuid IS NULL OR s.lead_id = %(lead_id)s::uuid)
  AND (%(address)s::text IS NULL OR s.address_hash = campaign_pipeline.campaign_address_hash(%(address)s::text))
  AND (%(channel)s::text IS NULL OR s.channel IS NULL OR s.channel = %(channel)s::text)
ORDER BY s.since DESC, s.id DESC
LIMIT %(shown)s;

-- name: export_lead
-- Everything stored of a lead, as one JSON document; null if there is nothing.
SELECT jsonb_pretty(campaign_pipeline.campaign_export_lead(%(lead_id)s)) AS document, ARRAY(
    SELECT m.id::text FROM public.campaign_messages m WHERE m.lead_id = %(lead_id)s) AS message_ids;

-- name: erase_lead
-- Erase a person's data; see campaign_erase_lead.
SELECT campaign_pipeline.campaign_erase_lead(%(lead_id)s, %(by)s) AS counts;

-- name: list_erased_leads
-- Who was erased in the last %(days)s days.
SELECT DISTINCT e.lead_id FROM campaign_pipeline.campaign_erasures e
WHERE e.erased_at >= campaign_pipeline.campaign_now() - make_interval(hours => 24 * %(days)s);

-- name: read_number_checks
-- The cached answers of a provider about these numbers; for a whole shard at once.
SELECT k.number, k."exists", k.account, k.jid, k.lid
FROM campaign_pipeline.campaign_number_checks k
WHERE k.provider = %(provider)s AND k.number = ANY (%(numbers)s)
  AND k.checked_at > campaign_pipeline.campaign_now() - CASE WHEN k."exists" THEN %(days)s::double precision
                                           ELSE %(missing_days)s::double precision END * interval '24 hours';

-- name: keep_number_checks
-- Store a provider's answers about numbers, in bulk, and update their leads in the CRM. One row per number and one per
-- lead: a statement can write a row only once.
WITH kept AS (
    INSERT INTO campaign_pipeline.campaign_number_checks
        AS k (provider, number, "exists", account, jid, lid, inbox_id, checked_at)
    SELECT %(provider)s, i.number, i."exists", i.account, i.jid, i.lid, %(inbox_id)s, campaign_pipeline.campaign_now()
    FROM jsonb_to_recordset(%(checks)s) AS i (number text, "exists" boolean, account text, jid text, lid text)
    ORDER BY i.number
    ON CONFLICT (provider, number) DO UPDATE
    SET "exists" = EXCLUDED."exists", account = EXCLUDED.account, jid = EXCLUDED.jid, lid = EXCLUDED.lid,
        inbox_id = EXCLUDED.inbox_id, checked_at = EXCLUDED.checked_at
)
UPDATE public.leads l
SET whatsapp_valid = known.reachable, whatsapp_jid = COALESCE(known.jid, l.whatsapp_jid)
FROM jsonb_to_recordset(%(leads)s) AS known (lead_id uuid, reachable boolean, jid text)
WHERE l.id = known.lead_id
  AND (l.whatsapp_valid, l.whatsapp_jid) IS DISTINCT FROM (known.reachable, COALESCE(known.jid, l.whatsapp_jid));
