-- Addresses: their kinds, and the canonical spelling of each.

-- The kind of an address, like core.address.address_kind; a test compares them.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_address_kind(p_address text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    RETURN CASE
        WHEN p_address IS NULL OR p_address = '' THEN NULL
        WHEN p_address LIKE '%@lid' THEN 'lid'
        WHEN p_address LIKE '%@s.whatsapp.net' OR p_address LIKE '%@c.us' OR p_address LIKE '%@g.us' THEN 'jid'
        WHEN p_address LIKE '%@%' THEN 'email'
        WHEN p_address ~ '^[A-Z]{2}\.[A-Za-z0-9]{1,128}$' THEN 'bsuid'
        ELSE 'phone' END;
END $$;

-- The canonical spelling of an address: digits with country code for a number (a Brazilian mobile number always with
-- its ninth digit, so that both of its spellings are one person), lower case for an e-mail address. Null for none.
-- A copy of core.phone_reading.canonical_address, pattern for pattern: an opt-out is processed in the transaction that
-- inserts the reply, where no Python runs. A property test compares both. Python reads the addresses that messages are
-- sent to and that operators type; it also refuses some, which this function never does.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_canonical_address(p_raw text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    area    CONSTANT text := '(?:1[1-9]|2[12478]|3[1-578]|4[1-9]|5[1345]|6[1-9]|7[134579]|8[1-9]|9[1-9])';
    written text := p_raw;
    digits  text;
    found   text[];
BEGIN
    -- The form of nearly all addresses. Literals instead of `area`: a constant pattern is compiled once.
    IF written ~ '^55(?:1[1-9]|2[12478]|3[1-578]|4[1-9]|5[1345]|6[1-9]|7[134579]|8[1-9]|9[1-9])9[0-9]{8}$' THEN
        RETURN written;
    END IF;
    -- The same in a CRM's form: +55 (11) 98765-4321. It needs no further check.
    IF written ~ ('^[+]?55 ?'
        '(?:[(](?:1[1-9]|2[12478]|3[1-578]|4[1-9]|5[1345]|6[1-9]|7[134579]|8[1-9]|9[1-9])[)]'
        '|(?:1[1-9]|2[12478]|3[1-578]|4[1-9]|5[1345]|6[1-9]|7[134579]|8[1-9]|9[1-9]))'
        ' ?9[0-9]{4}-?[0-9]{4}$') THEN
        RETURN translate(written, '+ ()-', '');
    END IF;
    IF written IS NULL OR length(written) > 320 THEN
        RETURN NULL;
    END IF;
    -- plain: no invisible marks, ASCII digits, spaces and dashes, no surrounding quotes
    IF octet_length(written) <> length(written) THEN
        written := regexp_replace(written,
            '[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]', '', 'g');
        written := regexp_replace(written, '[\u00a0\u2002\u2003\u2007\u2009\u202f\u3000]', ' ', 'g');
        written := regexp_replace(written, '[\u2010-\u2014\u2212]', '-', 'g');
        IF getdatabaseencoding() = 'UTF8' THEN  -- other encodings have no wide characters
            written := translate(written,
                (SELECT string_agg(chr(65281 + n), '' ORDER BY n) FROM generate_series(0, 93) AS n),
                (SELECT string_agg(chr(33 + n), '' ORDER BY n) FROM generate_series(0, 93) AS n));
        END IF;
    END IF;
    written := regexp_replace(written,
        '^[ \t\r\n''"=`\u00b4\u2018\u2019]+|[ \t\r\n''"=`\u00b4\u2018\u2019]+$', '', 'g');

    -- a WhatsApp account, an e-mail address or lid, a business-scoped id
    found := COALESCE(regexp_match(written, '^([0-9]+)(?::[0-9]{1,4})?@(?:s\.whatsapp\.net|c\.us)$', 'i'),
                      regexp_match(written, '^([0-9]+):[0-9]{1,4}$'));
    IF found IS NOT NULL THEN
        RETURN regexp_replace(found[1], '^(55' || area || ')([6-9][0-9]{7})$', '\19\2');
    END IF;
    found := regexp_match(written,
        '^(?:(?:https?://)?(?:[a-z]+\.)?wa\.me/'
        '|(?:(?:https?://)?(?:[a-z]+\.)?whatsapp\.com/|whatsapp://)send/?[?](?:[^ ]*&)?phone=)'
        '(?:[+]|%2B|%20)*([0-9][0-9().-]*)(?:[/?&#][^ ]*)?$', 'i');
    IF written LIKE '%@%' AND found IS NULL THEN
        RETURN lower(written);
    END IF;
    IF written ~ '^[A-Z]{2}\.[A-Za-z0-9]+$' THEN
        RETURN written;
    END IF;

    IF found IS NOT NULL THEN
        written := found[1];
    ELSE
        -- a label before, an aside after, a carrier code, a zero in brackets
        written := regexp_replace(written,
            '^(?:tel|telefone|fone|cel|celular|whats|whatsapp|zap|phone|mobile|contato|numero|n\u00famero|n|n\u00ba|p'
            '|ph|sms|callto)'
            '[ ]*[.:]+[ /]*', '', 'i');
        written := regexp_replace(written,
            '^[([][^0-9()+*\[\]]*[^0-9()+*\[\] xX][^0-9()+*\[\]]*[])][ ]*', '');
        written := regexp_replace(written, '[ ]*[([][^0-9()+*\[\]]+[])]$'
            '|[ ]*[ -][ ]*(?:whats|whatsapp|zap|cel|celular|movel|m\u00f3vel|fixo|comercial|residencial|pessoal'
            '|trabalho|casa|recado|mobile|work|home|vivo|tim|claro|oi)$', '', 'i');
        written := regexp_replace(written, '^([+]?55)?[ ]*([(]?)[ ]*0?[ ]*(?:xx|XX|\*\*)[ ]*', '\1 \2');
        written := regexp_replace(written,
            '^([+]?55)?[ ]*[(]?0[ ]?(?:12|14|15|21|23|25|31|41|43)[)]?[ -]+(?=[(]?' || area || '[)]?[ .-])', '\1 ');
        written := regexp_replace(written, '[(][ ]*0[ ]*[)]', ' ');
        written := regexp_replace(written,
            '^[ \t\r\n''"=`\u00b4\u2018\u2019]+|[ \t\r\n''"=`\u00b4\u2018\u2019]+$', '', 'g');
        -- a whole number that a spreadsheet stored as an amount
        IF written ~ '^[+]?[0-9]{10,}[.,]0+$' THEN
            written := regexp_replace(written, '[.,]0+$', '');
        ELSIF written ~ '^[0-9]{1,3}(?:\.[0-9]{3}){2,}(?:,0{1,2})?$'
              OR written ~ '^[0-9]{1,3}(?:,[0-9]{3}){2,}(?:\.0{1,2})?$' THEN
            written := regexp_replace(regexp_replace(written, '[.,]0{1,2}$', ''), '[.,]', '', 'g');
        ELSE
            found := regexp_match(written, '^[+]?([0-9])[.,]?([0-9]*)[eE][+]?([0-9]{1,2})$');
            IF length(found[1] || found[2]) = found[3]::integer + 1 THEN
                written := found[1] || found[2];
            END IF;
        END IF;
    END IF;
    IF written !~ '^[(]?[ ]*[+]?[0-9(][0-9 \t\r\n().-]*$' THEN
        RETURN NULL;
    END IF;

    digits := regexp_replace(written, '[^0-9]', '', 'g');
    IF digits LIKE '00%' THEN
        digits := substr(digits, 3);
        written := '+';
    END IF;
    found := regexp_match(digits, CASE WHEN written LIKE '%+%' THEN '^550?' ELSE '^(?:0?55)?0?' END
        || '(?:(' || area || '(?:9[0-9]{8}|[2-9][0-9]{7}))|(800[0-9]{7}))$');
    IF found IS NULL THEN
        RETURN NULLIF(digits, '');
    END IF;
    RETURN regexp_replace('55' || COALESCE(found[1], found[2]), '^(55' || area || ')([6-9][0-9]{7})$', '\19\2');
END $$;

-- The hash for comparison, which also remains of an erased person's address. Null for no address.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_address_hash(p_raw text) RETURNS text
    LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN encode(sha256(convert_to(
        (SELECT s.salt FROM campaign_pipeline.campaign_consent_salt s)
            || campaign_pipeline.campaign_canonical_address(p_raw), 'UTF8')), 'hex');
END $$;

-- The channel of an inbox: whatsapp unless its instance has another.
CREATE OR REPLACE FUNCTION campaign_pipeline.campaign_inbox_channel(p_inbox uuid) RETURNS text LANGUAGE plpgsql STABLE
SET jit = off SET enable_seqscan = off AS $$
BEGIN
    RETURN COALESCE((SELECT i.provider FROM public.inbox_instances x JOIN public.instances i ON i.id = x.instance_id
                     WHERE x.inbox_id = p_inbox AND i.provider IS NOT NULL ORDER BY i.id LIMIT 1), 'whatsapp');
END $$;
