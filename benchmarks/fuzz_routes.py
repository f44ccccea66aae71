"""The routes that the fuzz asks, each with bodies as users send them; for a tiny model.

It does not know how a body is made wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Body = dict[str, Any]

WORDS = st.lists(st.integers(0, 300).map(lambda i: f"w{i}"), max_size=12).map(" ".join)
_message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "user", "system", "assistant", "tool"]), "content": WORDS}
)
_common = {"max_tokens": st.integers(1, 6), "stream": st.booleans(), "temperature": st.just(0)}
CHAT_BASE: SearchStrategy[Body] = st.fixed_dictionaries(
    {"messages": st.lists(_message, min_size=1, max_size=3), **_common}
)
COMPLETION_BASE: SearchStrategy[Body] = st.fixed_dictionaries(
    {
        "prompt": st.one_of(WORDS, st.lists(st.integers(0, 255), min_size=1, max_size=9)),
        **_common,
    }
)
_ids = st.lists(st.integers(0, 255), min_size=1, max_size=9)


def _fixed(**fields: SearchStrategy[Any]) -> SearchStrategy[Body]:
    return st.fixed_dictionaries(fields)


GENERATE_BASE = _fixed(
    text=st.one_of(WORDS, st.lists(WORDS, max_size=3)),
    sampling_params=_fixed(max_new_tokens=st.integers(0, 6)),
    stream=st.booleans(),
)
#: Path and usual body by the name of the schema.
ASKED: dict[str, tuple[str, SearchStrategy[Body]]] = {
    "chat": ("/v1/chat/completions", CHAT_BASE),
    "completion": ("/v1/completions", COMPLETION_BASE),
    "generate": ("/generate", GENERATE_BASE),
    "score": ("/v1/score", _fixed(query=WORDS, items=st.lists(WORDS), label_token_ids=_ids)),
    "tokenize": ("/tokenize", _fixed(prompt=WORDS)),
    "detokenize": ("/detokenize", _fixed(tokens=_ids)),
}
