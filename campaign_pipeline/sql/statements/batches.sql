-- Statements about one batch: its messages, by their ids.

-- name: end_leases
-- Give back the messages of ended steps; see campaign_end_leases.
SELECT message_id, run_id, was, owner FROM campaign_pipeline.campaign_end_leases(%(ids)s, %(owners)s);

-- name: end_leases_of
-- Give back all messages of an owner whose process has ended.
SELECT message_id, run_id, was, owner
FROM campaign_pipeline.campaign_end_leases(
    ARRAY(SELECT m.id FROM public.campaign_messages m
          WHERE campaign_pipeline.campaign_is_leased_indexed(m.status) AND m.lease_owner = %(owner)s),
    ARRAY[%(owner)s]);

-- name: end_leases_of_run
-- Give back all messages of a run that has certainly ended, whichever of its steps held them.
SELECT FROM campaign_pipeline.campaign_end_leases(
    ARRAY(SELECT m.id FROM public.campaign_messages m
          WHERE campaign_pipeline.campaign_is_leased_indexed(m.status)
              AND (m.lease_owner = %(owner)s OR starts_with(m.lease_owner, %(owner)s || ' '))),
    ARRAY[%(owner)s]);

-- name: list_leased_by_run
-- The messages that a run holds, whichever of its steps holds them.
SELECT m.id FROM public.campaign_messages m
WHERE campaign_pipeline.campaign_is_leased_indexed(m.status)
    AND (m.lease_owner = %(owner)s OR starts_with(m.lease_owner, %(owner)s || ' '));

-- name: count_batch
-- Count the messages of a batch by their present state.
SELECT count(*) FILTER (WHERE m.status IN ('sent', 'replied')) AS sent,
       count(*) FILTER (WHERE m.status = 'failed') AS failed,
       count(*) FILTER (WHERE m.status = 'skipped') AS skipped,
       count(*) FILTER (WHERE m.status = 'pending') AS waiting,
       count(*) FILTER (WHERE campaign_pipeline.campaign_is_leased(m.status)) AS held,
       cardinality(%(ids)s::uuid[]) - count(*) AS deleted
FROM public.campaign_messages m WHERE m.id = ANY (%(ids)s::uuid[]);

-- name: name_runs
-- The display names of these campaign runs.
SELECT DISTINCT COALESCE(NULLIF(r.name, ''), 'unnamed') AS name FROM public.campaign_runs r
WHERE r.id = ANY (%(run_ids)s::uuid[]) ORDER BY 1;
