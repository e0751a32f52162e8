-- Keywords: replies that opt out or in.

-- Fold to lower-case words without accents, punctuation or emoji, one space between them.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_plain_words(p_text text) RETURNS text
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    plain text := p_text;
BEGIN
    IF getdatabaseencoding() = 'UTF8' THEN  -- other encodings have no normal form
        plain := regexp_replace(normalize(plain, NFKD), '[\u0300-\u036f\u200b-\u200f\u2060\ufeff]', '', 'g');
    END IF;
    RETURN btrim(regexp_replace(lower(plain), '[^a-z0-9]+', ' ', 'g'));
END $$;

-- The meaning of a reply: {meaning, phrase} of an opt-out or opt-in, or null. The whole reply or its first clause must
-- be the phrase, apart from courtesies; only after phrases marked `open_end` may anything follow. So SAIR, "Parar, por
-- favor!" and "Não quero mais receber isso" match, "não vou parar de comprar" does not.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_match_keyword(p_text text) RETURNS jsonb
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    whole text := campaign_pipeline.campaign_without_courtesy(campaign_pipeline.campaign_plain_words(p_text));
    first text := campaign_pipeline.campaign_without_courtesy(campaign_pipeline.campaign_plain_words(
                      substring(p_text FROM '^[^[:alnum:]]*([^.,;!\n\r]*)[.,;!\n\r]')));
    match jsonb;
BEGIN
    SELECT jsonb_build_object('meaning', k.meaning, 'phrase', k.phrase) INTO match
    FROM campaign_pipeline.campaign_consent_keywords k
    WHERE k.meaning <> 'courtesy'
      AND (k.phrase = whole OR k.phrase = first OR (k.open_end AND starts_with(whole || ' ', k.phrase || ' ')))
    ORDER BY length(k.phrase) DESC LIMIT 1;
    RETURN match;
END $$;

-- Drop courtesy words at both ends.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_without_courtesy(p_words text) RETURNS text
    LANGUAGE plpgsql STABLE AS $$
DECLARE
    words text[] := string_to_array(p_words, ' ');
    polite text[];
BEGIN
    SELECT array_agg(k.phrase) INTO polite FROM campaign_pipeline.campaign_consent_keywords k
           WHERE k.meaning = 'courtesy';
    IF polite IS NULL THEN
        RETURN p_words;
    END IF;
    WHILE cardinality(words) > 1 AND words[1] = ANY (polite) LOOP
        words := words[2:];
    END LOOP;
    WHILE cardinality(words) > 1 AND words[cardinality(words)] = ANY (polite) LOOP
        words := words[:cardinality(words) - 1];
    END LOOP;
    RETURN array_to_string(words, ' ');
END $$;

-- An opt-out suppresses its lead and number in its workspace and channel; an opt-in lifts what a keyword suppressed
-- there, and nothing that a person or a provider suppressed. Runs in the transaction that inserts the reply, with the
-- rights of this function's owner: the CRM's own user needs none on these tables.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_process_reply() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, campaign_pipeline, pg_temp AS $$
DECLARE
    match jsonb := campaign_pipeline.campaign_match_keyword(NEW.text_content);
    talk  record;
BEGIN
    IF match IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT COALESCE(v.workspace_id, b.workspace_id, l.workspace_id) AS workspace_id,
           COALESCE(v.channel, 'whatsapp') AS channel,
           v.lead_id, COALESCE(v.contact_phone, l.phone) AS address
    INTO talk
    FROM public.conversations v
    LEFT JOIN public.inboxes b ON b.id = v.inbox_id
    LEFT JOIN public.leads l ON l.id = v.lead_id
    WHERE v.id = NEW.conversation_id;
    IF NOT FOUND OR (talk.lead_id IS NULL AND campaign_pipeline.campaign_canonical_address(talk.address) IS NULL) THEN
        RETURN NULL;
    END IF;
    IF match ->> 'meaning' = 'opt_in' THEN
        PERFORM campaign_pipeline.campaign_lift(talk.workspace_id, CASE WHEN talk.workspace_id IS NOT NULL
                                                THEN talk.channel END,
                              talk.address, talk.lead_id, 'keyword', 'keyword');
    ELSIF talk.workspace_id IS NULL THEN
        -- The conversation's owner is unknown; a "stop" must still count.
        PERFORM campaign_pipeline.campaign_suppress('global', NULL, NULL, talk.address, talk.lead_id, 'keyword',
                                                    match ->> 'phrase');
    ELSE
        PERFORM campaign_pipeline.campaign_suppress('channel', talk.workspace_id, talk.channel, talk.address,
                                                    talk.lead_id, 'keyword',
                                  match ->> 'phrase');
    END IF;
    RETURN NULL;
END $$;

-- Cheap for all others: what goes out, and what is longer than any "stop", never enters the function.
CREATE OR REPLACE TRIGGER campaign_process_reply AFTER INSERT ON public.messages
    FOR EACH ROW WHEN (NEW.message_type IN ('received', 'incoming') AND length(NEW.text_content) <= 400)
    EXECUTE FUNCTION campaign_pipeline.campaign_process_reply();
