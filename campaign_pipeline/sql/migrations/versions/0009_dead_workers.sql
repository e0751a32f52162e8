-- Until when the request of an attempt without an outcome may have left: a look-up proves its absence only from then on.
ALTER TABLE campaign_pipeline.campaign_message_parts ADD COLUMN IF NOT EXISTS lease_ended_at timestamptz;

-- How many workers died or hung while they were at work on a message. Only messages of dead workers have a row.
CREATE TABLE IF NOT EXISTS campaign_pipeline.campaign_worker_deaths (
    message_id uuid PRIMARY KEY,
    deaths     integer NOT NULL CHECK (deaths > 0),
    last_at    timestamptz NOT NULL
);
