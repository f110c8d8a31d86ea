"""The drift of a film, measured while it grows: in a thread, as a block at 832 x 480 takes a CPU up to half a second.

Measures what is encoded, so nothing is decoded by the VAE for it.
"""

import logging
from concurrent.futures import Future, ThreadPoolExecutor, wait

from ..evaluation.drift_log import DriftLog, mark_switches
from ..session.session import Session
from ..video.film import Film
from ..video.fragments import Fragment

log = logging.getLogger(__name__)

LAST_PIECES = 16  # that the end of a run waits for: some seconds at 832 x 480


class FilmMeter:
    """Measures the pieces of a film in their order. A failure ends the measuring, never the film."""

    def __init__(self, film: Film) -> None:
        self.drift: dict = {}  # as JSON values; replaced, never changed
        self._film, self._log = film, DriftLog(film.encoding)
        self._session: Session | None = None  # the newest, whose switches the pieces are measured by
        self._counts: list[int] = []  # of the pieces that were measured
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._measuring: Future[None] | None = None
        self._is_closed = False

    def follow(self, session: Session) -> None:
        """Measure the pieces that are new, unless it is still busy with others."""
        self._session = session
        is_busy = self._measuring is not None and not self._measuring.done()
        if not is_busy and not self._is_closed and [piece.count for piece in self._film.pieces] != self._counts:
            self._measuring = self._thread.submit(self._measure)

    def close(self, session: Session | None = None) -> None:
        """Finish the piece that is being measured and, with a session, the last few."""
        missing = len(self._film.pieces) - len(self._counts)
        if session and missing <= LAST_PIECES and self._measuring:
            wait([self._measuring])
            self.follow(session)
        else:
            self._is_closed = True
        self._thread.shutdown()
        self._is_closed = True

    def _measure(self) -> None:
        try:
            while not self._is_closed and self._measure_next():
                self.drift = self._log.as_dict()
        except Exception as error:  # of any library that reads the fragment
            log.warning("the drift of the film is not measured any more (%s)", error)
            self.drift, self._is_closed = {}, True

    def _measure_next(self) -> bool:
        """Forget the pieces that a rewind dropped, and measure one; return whether there was one."""
        session, state = self._session, self._film.state
        counts = [piece.count for piece in state.pieces]
        while self._counts != counts[: len(self._counts)]:
            self._counts.pop()
        del self._counts[self._log.rewind(len(self._counts)) :]
        if session is None or len(self._counts) >= min(len(counts), len(session.blocks)):
            return False
        piece = state.pieces[len(self._counts)]
        media = self._film.read_piece(piece.number, piece.count)
        if media is not None:
            self._log.expect(mark_switches(session))
            self._log.append(Fragment(state.header, media, piece.num_frames))
            self._counts.append(piece.count)
        return True
