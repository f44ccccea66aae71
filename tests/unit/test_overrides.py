"""An override takes everywhere or raises; it never fails in silence."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle.errors import StartFailed
from pd_eagle.overrides import Override, apply, shape_errors, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Sender:
    fast = True

    def send(self, data: bytes, *, last: bool = False) -> str:
        return f"{data!r} {last}"


def original(a: int, b: int = 2) -> int:
    return a + b


@pytest.fixture
def foreign() -> Iterator[tuple[Any, Any]]:
    """A module that defines names, and one that imported one of them by name."""
    defining, importing = ModuleType("sglang.defining_"), ModuleType("sglang.importing_")
    vars(defining).update(original=original, Sender=type("Sender", (Sender,), {}), missing=None)
    vars(importing).update(renamed=original)
    sys.modules |= {"sglang.defining_": defining, "sglang.importing_": importing}
    yield defining, importing
    del sys.modules["sglang.defining_"], sys.modules["sglang.importing_"]


def override(name: str, shape: str, new: Callable[[Any], Any]) -> Override:
    return Override(target=f"sglang.defining_:{name}", shape=shape, because="test", new=new)


def test_replaces_a_function_where_it_is_defined_and_where_it_was_imported(
    foreign: tuple[Any, Any],
) -> None:
    apply([override("original", "a, b", lambda old: lambda a, b=2: 10 * old(a, b))])
    assert foreign[0].original(1) == 30
    assert foreign[1].renamed(1) == 30


def test_replaces_attributes_methods_and_names_that_are_none(foreign: tuple[Any, Any]) -> None:
    apply(
        [
            override("Sender.fast", "True", lambda _: False),
            override("Sender.send", "self, data, last", lambda _: lambda *a: "replaced"),
            override("missing", "None", lambda _: original),
        ]
    )
    sender = foreign[0].Sender()
    assert (sender.fast, sender.send(b"")) == (False, "replaced")
    assert foreign[0].missing is original
    assert foreign[1].renamed is original  # a None elsewhere must not become this


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("original", "a, b, c"),
        ("Sender.fast", "False"),
        ("Sender.gone", "True"),
        ("gone", "None"),
    ],
)
def test_refuses_a_target_that_changed_and_changes_nothing(
    foreign: tuple[Any, Any], name: str, shape: str
) -> None:
    good = override("original", "a, b", lambda _: "never")
    with pytest.raises(StartFailed, match=name):
        apply([good, override(name, shape, lambda _: "never")])
    assert foreign[0].original is original


def test_refuses_a_module_that_is_gone() -> None:
    gone = Override(target="sglang_gone_:x", shape="", because="test", new=lambda old: old)
    (error,) = shape_errors([gone])
    assert "sglang_gone_" in error


def test_shape_is_parameter_names_or_the_value() -> None:
    assert shape_of(Sender.send) == "self, data, last"
    assert shape_of(None) == "None"
    assert shape_of(lambda *args, **kwargs: 0) == "*args, **kwargs"
