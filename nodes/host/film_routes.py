"""The addresses at which a page watches a film: its state, its header, its pieces, and the file as it is.

Only GET, only a film whose id the caller knows, no path from the caller. What an address with a count names never
changes, so a browser may keep it.
"""

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from comfy.cli_args import args

from ...longlive.live.take import describe_film
from ...longlive.video.film import Film, FilmState
from .films import FILM_ID, find_film

FILM_ADDRESS = f"/longlive/film/{{id:{FILM_ID}}}"
CACHE_FOREVER, CACHE_NEVER = "private, max-age=31536000, immutable", "no-store"  # for Cache-Control
READ_BYTES = 1 << 18  # of a file at once

FilmHandler = Callable[[web.Request, Film], Awaitable[web.StreamResponse]]


def add_film_routes(routes: web.RouteTableDef) -> None:
    """Let a server answer for films."""
    handlers: dict[str, FilmHandler] = {
        "": send_state,
        "/init.mp4": send_header,
        r"/{number:\d{1,9}}.{count:\d{1,9}}.m4s": send_piece,
        "/film.mp4": send_file,
    }
    for address, handler in handlers.items():
        routes.get(FILM_ADDRESS + address)(find_film_for(handler))


def find_film_for(handler: FilmHandler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Let a handler have the film that a request names."""

    async def send(request: web.Request) -> web.StreamResponse:
        refuse_other_sites(request)
        film = find_film(request.match_info["id"])
        if film is None:
            raise web.HTTPNotFound(text="there is no such film, or the server was restarted; run the node again")
        try:
            return await handler(request, film)
        except FileNotFoundError:
            raise web.HTTPNotFound(text="the film was removed to make room; run the node again") from None

    return send


def refuse_other_sites(request: web.Request) -> None:
    """Raise HTTPForbidden for a request that the page of another site made, which older hosts let pass."""
    if request.headers.get("Sec-Fetch-Site") == "cross-site" and not args.enable_cors_header:
        raise web.HTTPForbidden(text="the page of another site may not do this")


async def send_state(request: web.Request, film: Film) -> web.Response:
    facts = {"id": request.match_info["id"], "version": film.state.version, **describe_film(film)}
    return web.json_response(facts, headers={"Cache-Control": CACHE_NEVER})


async def send_header(request: web.Request, film: Film) -> web.Response:
    header = film.state.header
    if not header:
        raise web.HTTPNotFound(text="the film has no frame yet")
    return web.Response(body=header, content_type="video/mp4", headers={"Cache-Control": CACHE_NEVER})


async def send_piece(request: web.Request, film: Film) -> web.Response:
    number, count = int(request.match_info["number"]), int(request.match_info["count"])
    media = await asyncio.to_thread(film.read_piece, number, count)
    if media is None:
        raise web.HTTPNotFound(text="the film has no such piece any more")
    return web.Response(body=media, content_type="video/mp4", headers={"Cache-Control": CACHE_FOREVER})


async def send_file(request: web.Request, film: Film) -> web.StreamResponse:
    """Send the film, or a range of it: up to the piece with the count `v`, or all of it."""
    state = choose_state(film, request.query.get("v"))
    try:
        first, end, _ = request.http_range.indices(state.length)
    except ValueError:
        first = end = state.length
    headers = {"Accept-Ranges": "bytes", "Cache-Control": CACHE_FOREVER if "v" in request.query else CACHE_NEVER}
    if first >= end:
        headers["Content-Range"] = f"bytes */{state.length}"
        raise web.HTTPRequestRangeNotSatisfiable(headers=headers)
    is_part = "Range" in request.headers
    if is_part:
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{state.length}"
    answer = web.StreamResponse(status=206 if is_part else 200, headers=headers)
    answer.content_type, answer.content_length = "video/mp4", end - first
    await answer.prepare(request)
    for start in range(first, end, READ_BYTES) if request.method != "HEAD" else ():
        content = await asyncio.to_thread(film.read_range, state, start, min(start + READ_BYTES, end))
        if content is None:  # a rewind has dropped it; the page asks for the new film
            raise ConnectionResetError
        await answer.write(content)
    await answer.write_eof()
    return answer


def choose_state(film: Film, version: str | None) -> FilmState:
    """Choose how much of a film to send. Raises HTTPNotFound if it is empty or has no piece with this count."""
    state = film.state
    if version is not None:
        counts = [str(piece.count) for piece in state.pieces]
        state = state.rewound_to(counts.index(version) + 1) if version in counts else FilmState()
    if not state.length:
        raise web.HTTPNotFound(text="the film has no frame yet, or not this one any more")
    return state
