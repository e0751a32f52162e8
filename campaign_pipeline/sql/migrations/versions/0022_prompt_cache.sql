-- What providers' prompt caches did, with the model calls that are kept.

ALTER TABLE campaign_pipeline.campaign_model_calls
    ADD COLUMN IF NOT EXISTS cached_tokens integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS cache_write_tokens integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS cache_saved_usd numeric;
COMMENT ON TABLE campaign_pipeline.campaign_model_calls IS
    'Answers of language models that could not be used, were changed before they were sent, or whose prompts were '
    'cached. Each is booked once.';
COMMENT ON COLUMN campaign_pipeline.campaign_model_calls.cached_tokens IS
    'Of prompt_tokens: read from the provider''s prompt cache.';
COMMENT ON COLUMN campaign_pipeline.campaign_model_calls.cache_write_tokens IS
    'Of prompt_tokens: written into the provider''s prompt cache.';
COMMENT ON COLUMN campaign_pipeline.campaign_model_calls.cache_saved_usd IS
    'US dollars that the cache saved, by the family''s published cache prices; negative where writing cost more; '
    'null: not known.';
