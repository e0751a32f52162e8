-- Who may not be written to and what is known of it; erasures; what providers said of numbers. Additive only.

-- Suppression --------------------------------------------------------------------------------------------------------

-- One secret of this database, mixed into every hash of an address: a copied table of suppressions alone tells no
-- number, though there are few enough numbers to try them all.
CREATE TABLE IF NOT EXISTS campaign_consent_salt (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    salt     text NOT NULL
);
COMMENT ON TABLE campaign_consent_salt IS 'One row: the secret of this database that is mixed into hashes of addresses.';
COMMENT ON COLUMN campaign_consent_salt.only_row IS 'Always true: there is one row.';
COMMENT ON COLUMN campaign_consent_salt.salt IS 'Made at random once. If it changes, erased people are no longer recognised.';
INSERT INTO campaign_consent_salt (salt) VALUES (gen_random_uuid()::text || gen_random_uuid()::text)
ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS campaign_suppressions (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    scope        text NOT NULL CHECK (scope IN ('global', 'workspace', 'channel')),
    workspace_id uuid,
    channel      text,
    address      text,
    address_hash text,
    lead_id      uuid,
    source       text NOT NULL CHECK (source IN ('keyword', 'provider', 'by_hand', 'erasure')),
    reason       text,
    since        timestamptz NOT NULL,
    lifted_at    timestamptz,
    lifted_by    text,
    CONSTRAINT campaign_suppressions_scope_complete CHECK (
        (scope = 'global' AND workspace_id IS NULL AND channel IS NULL)
        OR (scope = 'workspace' AND workspace_id IS NOT NULL AND channel IS NULL)
        OR (scope = 'channel' AND workspace_id IS NOT NULL AND channel IS NOT NULL)),
    CONSTRAINT campaign_suppressions_of_somebody CHECK (address_hash IS NOT NULL OR lead_id IS NOT NULL)
);
COMMENT ON TABLE campaign_suppressions IS
    'Who may not be written to. Nothing is sent to a lead or an address while a row that covers it is not lifted.';
COMMENT ON COLUMN campaign_suppressions.id IS 'Its number, for people.';
COMMENT ON COLUMN campaign_suppressions.scope IS
    'How far it reaches: global, all channels of one workspace, or one channel of one workspace.';
COMMENT ON COLUMN campaign_suppressions.workspace_id IS 'The workspace; null: global.';
COMMENT ON COLUMN campaign_suppressions.channel IS 'whatsapp or email, where only that channel is meant.';
COMMENT ON COLUMN campaign_suppressions.address IS
    'Canonical number (digits, a Brazilian mobile with its ninth) or e-mail, for people; null once the person is erased.';
COMMENT ON COLUMN campaign_suppressions.address_hash IS
    'campaign_address_hash of the address: what is compared before each send. Stays when the person is erased.';
COMMENT ON COLUMN campaign_suppressions.lead_id IS 'The lead, where it is known: it is covered at any address.';
COMMENT ON COLUMN campaign_suppressions.source IS
    'keyword: said so in a reply; provider: an answer that means so; by_hand: an operator; erasure: erased on request.';
COMMENT ON COLUMN campaign_suppressions.reason IS 'The keyword, the provider''s code, or what the operator wrote.';
COMMENT ON COLUMN campaign_suppressions.since IS 'When it began.';
COMMENT ON COLUMN campaign_suppressions.lifted_at IS 'When it ended; null: it holds.';
COMMENT ON COLUMN campaign_suppressions.lifted_by IS 'Who lifted it: keyword, or the operator''s name.';

-- Serves: campaign_suppress (the same suppression is written once).
CREATE UNIQUE INDEX IF NOT EXISTS campaign_suppressions_once ON campaign_suppressions (
    scope, COALESCE(workspace_id::text, ''), COALESCE(channel, ''), COALESCE(address_hash, ''), COALESCE(lead_id::text, ''))
    WHERE lifted_at IS NULL;
-- Serve: campaign_refused_by_consent, campaign_suppressed_messages, campaign_lift (by address; by lead).
CREATE INDEX IF NOT EXISTS campaign_suppressions_of_address ON campaign_suppressions (address_hash) WHERE lifted_at IS NULL;
CREATE INDEX IF NOT EXISTS campaign_suppressions_of_lead ON campaign_suppressions (lead_id) WHERE lifted_at IS NULL;

CREATE TABLE IF NOT EXISTS campaign_consent_keywords (
    phrase   text PRIMARY KEY CHECK (phrase ~ '^[a-z0-9]+( [a-z0-9]+)*$'),
    meaning  text NOT NULL CHECK (meaning IN ('opt_out', 'opt_in', 'courtesy')),
    open_end boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE campaign_consent_keywords IS
    'What a lead''s reply must say to be an opt-out or an opt-in. Add rows freely; they hold from the next reply on.';
COMMENT ON COLUMN campaign_consent_keywords.phrase IS
    'Lower-case words without accents or punctuation, one space between: as campaign_plain_words gives a reply.';
COMMENT ON COLUMN campaign_consent_keywords.meaning IS
    'opt_out and opt_in hold if the whole reply, or its first clause, says just this; courtesy words around it are ignored.';
COMMENT ON COLUMN campaign_consent_keywords.open_end IS
    'True for phrases so clear that anything may follow them: nao quero mais receber (mensagens de voces).';
INSERT INTO campaign_consent_keywords (phrase, meaning, open_end) VALUES
    ('sair', 'opt_out', false), ('parar', 'opt_out', false), ('pare', 'opt_out', false), ('stop', 'opt_out', false),
    ('cancelar', 'opt_out', false), ('cancele', 'opt_out', false), ('descadastrar', 'opt_out', true),
    ('descadastre', 'opt_out', true), ('descadastro', 'opt_out', false), ('remover', 'opt_out', false),
    ('remova', 'opt_out', false), ('bloquear', 'opt_out', false), ('unsubscribe', 'opt_out', true),
    ('opt out', 'opt_out', true), ('optout', 'opt_out', true), ('sair da lista', 'opt_out', true),
    ('sair desta lista', 'opt_out', true), ('sair dessa lista', 'opt_out', true), ('parar de receber', 'opt_out', true),
    ('parar mensagens', 'opt_out', true), ('parar de enviar', 'opt_out', true), ('parar de mandar', 'opt_out', true),
    ('pare de enviar', 'opt_out', true), ('pare de mandar', 'opt_out', true), ('pare de me enviar', 'opt_out', true),
    ('pare de me mandar', 'opt_out', true), ('para de me mandar', 'opt_out', true), ('para de me enviar', 'opt_out', true),
    ('parem de me mandar', 'opt_out', true), ('parem de me enviar', 'opt_out', true),
    ('nao quero receber', 'opt_out', true), ('nao quero mais receber', 'opt_out', true),
    ('nao desejo receber', 'opt_out', true), ('nao desejo mais receber', 'opt_out', true),
    ('nao me mande mais', 'opt_out', true), ('nao me envie mais', 'opt_out', true),
    ('nao me mandem mais', 'opt_out', true), ('nao me enviem mais', 'opt_out', true),
    ('cancelar inscricao', 'opt_out', true), ('cancelar envio', 'opt_out', true), ('cancelar envios', 'opt_out', true),
    ('cancelar mensagens', 'opt_out', true), ('cancelar cadastro', 'opt_out', true),
    ('me tire da lista', 'opt_out', true), ('me tira da lista', 'opt_out', true), ('me remova', 'opt_out', true),
    ('remova meu numero', 'opt_out', true), ('remover meu numero', 'opt_out', true), ('remova meu contato', 'opt_out', true),
    ('voltar', 'opt_in', false), ('start', 'opt_in', false), ('unstop', 'opt_in', false), ('reativar', 'opt_in', false),
    ('voltar a receber', 'opt_in', true), ('subscribe', 'opt_in', false), ('quero receber', 'opt_in', false),
    ('por', 'courtesy', false), ('favor', 'courtesy', false), ('gentileza', 'courtesy', false), ('pfv', 'courtesy', false),
    ('pf', 'courtesy', false), ('please', 'courtesy', false), ('obrigado', 'courtesy', false), ('obrigada', 'courtesy', false),
    ('obg', 'courtesy', false), ('grato', 'courtesy', false), ('grata', 'courtesy', false), ('oi', 'courtesy', false),
    ('ola', 'courtesy', false), ('bom', 'courtesy', false), ('boa', 'courtesy', false), ('dia', 'courtesy', false),
    ('tarde', 'courtesy', false), ('noite', 'courtesy', false), ('agora', 'courtesy', false), ('ja', 'courtesy', false),
    ('quero', 'courtesy', false), ('desejo', 'courtesy', false), ('gostaria', 'courtesy', false)
ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS campaign_suppressing_codes (
    code    text PRIMARY KEY,
    scope   text NOT NULL CHECK (scope IN ('workspace', 'channel')),
    meaning text NOT NULL
);
COMMENT ON TABLE campaign_suppressing_codes IS
    'Permanent answers of providers after which an address is never written to again. Add rows freely.';
COMMENT ON COLUMN campaign_suppressing_codes.code IS 'The code as adapters give it and campaign_messages.error_code has it.';
COMMENT ON COLUMN campaign_suppressing_codes.scope IS 'Which suppression it becomes: one channel, or the whole workspace.';
COMMENT ON COLUMN campaign_suppressing_codes.meaning IS 'What the answer says of the address.';
INSERT INTO campaign_suppressing_codes (code, scope, meaning) VALUES
    ('opted_out', 'channel', 'The person opted out of marketing at the provider (Cloud API 131050).'),
    ('hard_bounce', 'channel', 'There is no such mailbox (SMTP 550, 551, 553; 5.1.x).'),
    ('unsubscribed', 'channel', 'The person used the unsubscribe link of an e-mail.'),
    ('spam_complaint', 'channel', 'The person reported an e-mail as spam.')
ON CONFLICT DO NOTHING;

-- One message a day --------------------------------------------------------------------------------------------------

ALTER TABLE public.workspaces ADD COLUMN IF NOT EXISTS one_message_per_lead_per_day boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN public.workspaces.one_message_per_lead_per_day IS
    'Whether a lead gets at most one message a day, of all campaigns together; later ones wait for the next local day.';

CREATE TABLE IF NOT EXISTS campaign_lead_days (
    day        date NOT NULL,
    lead_id    uuid NOT NULL,
    message_id uuid NOT NULL,
    PRIMARY KEY (day, lead_id)
);
COMMENT ON TABLE campaign_lead_days IS
    'Which message a lead gets on a day, where it may get only one; its key lets one of two campaigns in. Kept for days.';
COMMENT ON COLUMN campaign_lead_days.day IS 'The day in the campaign''s time zone.';
COMMENT ON COLUMN campaign_lead_days.lead_id IS 'The lead.';
COMMENT ON COLUMN campaign_lead_days.message_id IS
    'The message that has this day. Another may take it over as long as nothing of this one may have gone out.';

-- Erasure ------------------------------------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS campaign_erasures (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lead_id      uuid NOT NULL,
    workspace_id uuid,
    erased_at    timestamptz NOT NULL,
    erased_by    text NOT NULL,
    counts       jsonb NOT NULL
);
COMMENT ON TABLE campaign_erasures IS 'That a lead''s personal data was erased, when and by whom; nothing of the person.';
COMMENT ON COLUMN campaign_erasures.id IS 'Its number, for people.';
COMMENT ON COLUMN campaign_erasures.lead_id IS 'The lead''s id, which by now names nobody.';
COMMENT ON COLUMN campaign_erasures.workspace_id IS 'The workspace that it belonged to.';
COMMENT ON COLUMN campaign_erasures.erased_at IS 'When.';
COMMENT ON COLUMN campaign_erasures.erased_by IS 'The operator who did it.';
COMMENT ON COLUMN campaign_erasures.counts IS 'Rows blanked or removed, by table.';

-- No index on campaign_messages (lead_id) and campaign_logs (lead_id): only an export or an erasure asks by lead, and may
-- read the table for it. Every message would pay, five times in its life, on a page of its own of a large random index.

-- Numbers ------------------------------------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS campaign_number_checks (
    provider   text NOT NULL,
    number     text NOT NULL,
    "exists"   boolean NOT NULL,
    account    text,
    jid        text,
    lid        text,
    inbox_id   uuid,
    checked_at timestamptz NOT NULL,
    PRIMARY KEY (provider, number)
);
COMMENT ON TABLE campaign_number_checks IS
    'What a provider said of a number when it was asked just before a send. What could not be asked has no row.';
COMMENT ON COLUMN campaign_number_checks.provider IS 'The adapter that asked: evolution, uazapi.';
COMMENT ON COLUMN campaign_number_checks.number IS 'The international digits that were asked for.';
COMMENT ON COLUMN campaign_number_checks."exists" IS 'Whether the number has an account.';
COMMENT ON COLUMN campaign_number_checks.account IS 'The account''s own digits: without the ninth where it was registered so.';
COMMENT ON COLUMN campaign_number_checks.jid IS 'The account''s jid, where the provider tells it.';
COMMENT ON COLUMN campaign_number_checks.lid IS 'The name that hides the number, where the provider tells it.';
COMMENT ON COLUMN campaign_number_checks.inbox_id IS 'Through which inbox it was asked.';
COMMENT ON COLUMN campaign_number_checks.checked_at IS
    'When. Believed for CAMPAIGN_NUMBER_CHECK_DAYS if it exists, for CAMPAIGN_NUMBER_RECHECK_DAYS if not.';

ALTER TABLE public.campaign_messages ADD COLUMN IF NOT EXISTS address_kind text;
ALTER TABLE campaign_message_parts ADD COLUMN IF NOT EXISTS address_kind text;
COMMENT ON COLUMN public.campaign_messages.address_kind IS 'What `address` is: phone, jid, lid, bsuid (business-scoped id) or email.';
COMMENT ON COLUMN campaign_message_parts.address_kind IS 'What `address` is: phone, jid, lid, bsuid or email.';
