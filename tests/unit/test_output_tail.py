"""A process's output line by line, and what is kept of it."""

from __future__ import annotations

import asyncio
import os

import pytest

from pd_eagle.workers.output_tail import OutputTail


class Output:
    """A process's output, written by the test."""

    def __init__(self) -> None:
        reading, self.writing = os.pipe()
        self.heard: list[str] = []
        self.tail = OutputTail(reading, self.heard.append)

    def write(self, data: bytes) -> None:
        os.write(self.writing, data)

    async def end(self) -> None:
        os.close(self.writing)
        await self.tail.wait_closed(5)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"one\ntwo\n"],
        [b"o", b"ne\nt", b"wo", b"\n"],
        [b"one\r\ntwo\r\n"],
        [b"one\ntwo"],  # the last words may lack their end
    ],
)
async def test_output_comes_line_by_line(pieces: list[bytes]) -> None:
    output = Output()
    for piece in pieces:
        output.write(piece)
        await asyncio.sleep(0)
    await output.end()
    assert output.heard == ["one", "two"]
    assert list(output.tail.lines) == ["one", "two"]


async def test_output_that_is_not_text_does_no_harm() -> None:
    output = Output()
    output.write(b"\xff\xfe broken \xe2\x82\n")
    await output.end()
    assert output.heard == ["\ufffd\ufffd broken \ufffd"]


async def test_only_the_last_lines_are_kept() -> None:
    output = Output()
    output.write(b"".join(b"%d\n" % n for n in range(1000)))
    await output.end()
    assert len(output.heard) == 1000
    assert list(output.tail.lines) == [str(n) for n in range(800, 1000)]


async def test_output_may_be_closed_before_it_ends() -> None:
    output = Output()
    output.tail.close()
    output.tail.close()
    await output.tail.wait_closed(5)
    os.close(output.writing)


async def test_waiting_for_the_end_of_output_has_a_limit() -> None:
    output = Output()
    await output.tail.wait_closed(0.01)
    await output.end()
