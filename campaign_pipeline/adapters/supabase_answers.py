"""The answers of the CRM's function and their meaning, including its provider's answers that it passes on."""

from campaign_pipeline.adapters.answers import Row, redirected, tells_nothing
from campaign_pipeline.adapters.whatsapp_web import in_words, no_account, timed_out
from campaign_pipeline.core.ports import Permanent, Sent, Systemic, Throttled, Unknown

FUNCTION = "internal-send-ai-message"

_SAYS_SENT_NOT_SAVED = (
    r"(the )?message (was )?sent( successfully)?[ ,]*(but|and)? .{0,30}(failed|could not|unable|error)\b.{0,30}"
    r"(sav|stor|insert|record)\w*\b.{0,40}|fail(ed|ure)? to (save|store|insert) (the )?(sent )?message\b.{0,40}"
    r"|(a )?mensagem (foi )?enviada,? mas .{0,30}(falh|erro|n[ãa]o)\w*\b.{0,30}(salv|grav|regist)\w*\b.{0,40}"
)
"""The function's words if the message was sent and only its row could not be written."""

ANSWERS: tuple[Row, ...] = (
    # It was sent: treated as a failure, it would be sent twice. Its row is missing in the CRM, so we write it.
    Row(Sent, "sent_not_stored", "It was sent, and not saved.", status={500}, says=_SAYS_SENT_NOT_SAVED),
    Row(
        Systemic,
        "bad_key",
        "The function refuses SUPABASE_SERVICE_ROLE_KEY.",
        status={401, 403},
    ),
    Row(
        Systemic,
        "inbox_disconnected",
        "The function found no connected instance for this inbox; connect one and it goes on by itself.",
        status={400},
        says=r"no (\w{1,20} ){0,3}instance( was)? found( for .{1,60})?"
        r"|(the )?instance( \S{1,60})? (is )?not (found|connected)"
        r"|nenhuma inst[âa]ncia (conectada|encontrada)\b.{0,60}"
        r"|(a )?inst[âa]ncia( \S{1,60})? (est[áa] )?(desconectada|n[ãa]o (est[áa] )?(conectada|encontrada))",
    ),
    Row(
        Permanent,
        "invalid_request",
        "The function refused the request as incomplete.",
        status={400},
        says=r"missing (conversationid|text|required)\b.{0,60}|(conversationid|text)\b.{0,30} (is|are) required"
        r"|(conversationid|text)\b.{0,30} obrigat[óo]ri\w{1,3}",
    ),
    Row(Permanent, "invalid_request", "The function takes no such request.", status={405}),
    Row(
        Permanent,
        "conversation_missing",
        "The function does not know the conversation of this message.",
        status={404},
        says=r"conversation( \S{1,60})? (was )?not found|conversa n[ãa]o encontrada",
    ),
    Row(
        Systemic,
        "function_missing",
        f"There is no function {FUNCTION} at SUPABASE_URL; deploy it, or correct the URL.",
        status={404},
        says=r"(requested )?function( \S{1,60})?( was)? not found|not_found",
    ),
    redirected("SUPABASE_URL"),
    Row(Throttled, "rate_limited", "Supabase says that requests come too fast.", status={429}),
    Row(
        Systemic,
        "no_token",
        "The instance that the function sends through has no token; set instance_token or api_key.",
        status={500},
        says=r"(no|missing) (\w{1,20} ){0,2}(token|api.?key)\b.{0,40}"
        r"|(\w{1,20} ){0,2}(token|api.?key) (is )?(not configured|missing)\b.{0,40}",
    ),
    # The provider's answer, in its own words.
    timed_out("The function's provider", {500}),
    no_account({500}, fact="no_account"),
    no_account({500}),
    *in_words({500}),
    Row(
        Unknown,
        "worker_killed",
        "Supabase stopped the function for its use of processor or memory; it may have sent before.",
        status={546},
    ),
    tells_nothing("Supabase", {408, 502, 503, 504}),
)
"""To a send; the first matching row decides."""
