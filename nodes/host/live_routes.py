"""The address at which pages and programs see the state of a take, and speak to its run.

ComfyUI's own protection has holes (`docs/live.md`). So a message is JSON and nothing else, its length is bounded, the
take in its address is the right to send it, and no path comes from outside.
"""

import asyncio

from aiohttp import web

from ...longlive.errors import MessageError, SessionError
from ...longlive.live.inbox import Inbox
from ...longlive.live.messages import MAX_MESSAGE_BYTES, Message, read_message
from ...longlive.live.take import ADDRESS, find_take
from .film_routes import CACHE_NEVER, refuse_other_sites
from .runs import find_takes_folder, runs

LIVE_ADDRESS = "/longlive/live/{take}"


def add_live_routes(routes: web.RouteTableDef) -> None:
    """Let a server answer for takes."""
    routes.get(LIVE_ADDRESS)(send_run)
    routes.post(LIVE_ADDRESS)(receive_message)


async def send_run(request: web.Request) -> web.Response:
    """Send the state of a take."""
    refuse_other_sites(request)
    take = request.match_info["take"]
    try:
        state = await asyncio.to_thread(runs.describe, take)
    except SessionError as error:
        return refuse(404, str(error))
    if state is None:
        return refuse_unknown_take(take)
    return web.json_response(state, headers={"Cache-Control": CACHE_NEVER})


async def receive_message(request: web.Request) -> web.Response:
    """Hand a message to the run of a take; the answer says only whether it waits to be read."""
    refuse_other_sites(request)
    take = request.match_info["take"]
    if request.content_type != "application/json":
        return refuse(415, f"the message is {request.content_type}; send JSON, as application/json")
    if "Content-Encoding" in request.headers:
        return refuse(415, "the message is compressed; send it as it is")
    body = await read_body(request)
    if body is None:
        return refuse(413, f"the message is larger than {MAX_MESSAGE_BYTES:,} bytes; send a shorter one")
    inbox = runs.find(take)
    if inbox is None:
        is_known = await asyncio.to_thread(find_take, find_takes_folder(), take)
        return refuse(409, "this run is over; begin another one") if is_known else refuse_unknown_take(take)
    try:
        message = read_message(body)
    except MessageError as error:
        return refuse(400, str(error))
    return deliver(inbox, message)


async def read_body(request: web.Request) -> bytes | None:
    """Read the body of a request; None if it is longer than a message may be."""
    body = bytearray()
    async for piece in request.content.iter_any():
        body += piece
        if len(body) > MAX_MESSAGE_BYTES:
            return None
    return bytes(body)


def deliver(inbox: Inbox, message: Message) -> web.Response:
    try:
        inbox.put(message)
    except MessageError as error:
        return refuse(409 if inbox.is_closed else 429, str(error))
    return web.json_response({"accepted": True})


def refuse(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)


def refuse_unknown_take(take: str) -> web.Response:
    problem = "there is no such take" if ADDRESS.fullmatch(take) else "a take is 32 hexadecimal digits"
    return refuse(404, f"{problem}; press Direct in LongLive Live to begin one")
