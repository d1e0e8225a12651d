"""The gateways of a node tell each other what they have counted, whatever has become of one of them."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from deployments.gateway.siblings import ANSWER_S, Siblings
from deployments.metrics import Metrics


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        yield Path(name)


@asynccontextmanager
async def gateway(folder: Path, name: str, answers: int = 0, node: str = "node-one") -> AsyncIterator[Siblings]:
    metrics = Metrics(name)
    for _ in range(answers):
        metrics.cell("m", "1").answered(1.0, 0.001, 0.0, 0.001, rows=1, batch_rows=1)
    siblings = Siblings(metrics, folder, node)
    await siblings.listen()
    try:
        yield siblings
    finally:
        siblings.close()


@asynccontextmanager
async def listener(path: Path, met: Callable[[asyncio.StreamWriter], None]) -> AsyncIterator[None]:
    """Somebody else on a gateway's socket, who does `met` and keeps the connection open."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met(writer)
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        server.close()


async def test_whoever_is_asked_answers_for_the_node(folder: Path) -> None:
    async with AsyncExitStack() as stack:
        gateways = [await stack.enter_async_context(gateway(folder, f"g{n}", n)) for n in (1, 2, 3)]
        for asked in gateways:
            seen = await asked.read()
            assert seen.gateways == ["g1", "g2", "g3"] and seen.silent == 0
            assert sum(cell.rows for cell in seen.of_model("m")["1"]) == 6


async def test_a_gateway_that_has_ended_is_not_missed(folder: Path) -> None:
    async with gateway(folder, "g1", 1) as asked:
        async with gateway(folder, "g2", 2):
            pass
        seen = await asked.read()
    assert (seen.gateways, seen.silent) == (["g1"], 0)


async def test_the_socket_of_a_killed_gateway_is_removed_once_it_is_old(folder: Path) -> None:
    left = folder / "g-node-one-dead.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(left))
    async with gateway(folder, "g1") as asked:
        assert (await asked.read()).silent == 0 and left.exists()  # young: its owner may be about to listen
        os.utime(left, (time.time() - 60, time.time() - 60))
        assert (await asked.read()).silent == 0 and not left.exists()


async def test_a_gateway_that_does_not_answer_is_left_out_in_time_and_said_to_be_silent(folder: Path) -> None:
    async with gateway(folder, "g1", 1) as asked, gateway(folder, "g2", 2):
        async with listener(folder / "g-node-one-hung.sock", lambda writer: None):
            started_s = time.monotonic()
            seen = await asked.read()
            assert time.monotonic() - started_s < 10 * ANSWER_S
        assert (seen.gateways, seen.silent) == (["g1", "g2"], 1)


async def test_nonsense_counts_as_silence(folder: Path) -> None:
    def nonsense(writer: asyncio.StreamWriter) -> None:
        writer.write(b"\xc1 what is this")
        writer.write_eof()

    async with gateway(folder, "g1") as asked, listener(folder / "g-node-one-odd.sock", nonsense):
        assert (await asked.read()).silent == 1


async def test_gateways_of_another_node_are_not_asked(folder: Path) -> None:
    async with gateway(folder, "g1") as asked, gateway(folder, "g2", node="node-two"):
        assert (await asked.read()).gateways == ["g1"]


async def test_many_who_ask_at_once_cause_one_round(folder: Path) -> None:
    met: list[asyncio.StreamWriter] = []
    async with gateway(folder, "g1") as asked, listener(folder / "g-node-one-hung.sock", met.append):
        seen = await asyncio.gather(*(asked.read() for _ in range(50)))
        assert len(met) == 1 and all(each is seen[0] for each in seen)


async def test_without_a_folder_a_gateway_speaks_for_itself() -> None:
    alone = Siblings(Metrics("g1"))
    await alone.listen()
    assert (await alone.read()).gateways == ["g1"]
    alone.close()
