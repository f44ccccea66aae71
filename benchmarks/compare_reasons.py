"""Why our answers differ from those of SGLang's server (0.5.23), where they do so on purpose."""

from __future__ import annotations

from benchmarks.compare_answers import Reason

_PD, _EAGLE = "^PD", "EAGLE"
_STATUS = "^status$"

REASONS: tuple[Reason, ...] = (
    # --- the model's name
    Reason("", r"\.model$", "answers name the model that is served, SGLang's repeat the request"),
    Reason("unknown model$", _STATUS, "a model that is not served is a 404, as OpenAI has it"),
    Reason(
        r"^responses: |^GET /v1/models/default$",
        _STATUS,
        "`default` names the model in every API, and responses are looked up though none is stored",
    ),
    Reason("^GET /v1/models", r"^\.data\[0\]\.(owned_by|root)$", "a card says who made it"),
    # --- what SGLang cannot take
    Reason(
        "id outside$|id below$|generate, wrong: empty$", _STATUS, "SGLang's scheduler dies of it"
    ),
    Reason(r"detokenize: (outside|below)$", _STATUS, "ids outside the vocabulary are told"),
    Reason("a body that is (a list|a text|null)$", _STATUS, "no body is a 500"),
    Reason("top_k zero$", _STATUS, "SGLang takes it for all tokens; OpenAI has none"),
    # --- what SGLang ignores
    Reason(": (suffix|best_of)$", _STATUS, "SGLang ignores it; it would change the answer"),
    Reason("generate, wrong: image$", _STATUS, "SGLang ignores media that the model cannot take"),
    Reason("^chat: tools$", _STATUS, "without a parser SGLang sends the calls as text"),
    Reason(": min_p$", _STATUS, "SGLang does not read it when it verifies drafts", _EAGLE),
    # --- the context
    Reason(
        "almost all of the context$",
        r"text$|tokens$|\.end$",
        "the whole context can be used; SGLang ends answers two tokens before",
    ),
    Reason("almost all of the context$", _STATUS, "drafts take the context's last places", _EAGLE),
    # --- grammars that the tiny model's words cannot finish
    Reason(
        "dead end$|json object$",
        "",
        "a grammar that no token can continue is told, once a second half or a draft notices it",
        _PD,
    ),
    # --- what a pair has, or has not
    Reason("", r"\.spec_\w+$", "of drafts", _EAGLE),
    Reason("", r"\.storage_(prefetch|staging)_wait$", "of one engine's own store", _PD),
    # --- the server itself
    Reason("token ids$", r"prompt_token_ids$", "the prompt's ids are in /tokenize"),
    Reason("model_info$", r"^\.embedding$", "of embedding models"),
    Reason("^GET /v1/loads$", "", "several engines, each named; figures of that moment"),
    Reason("flush_cache$", "", "words; and other requests may run in an engine at that moment"),
)
