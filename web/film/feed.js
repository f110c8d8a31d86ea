// @ts-check
/**
 * A film as the host has it, kept up to date by the host's events. Knows no page. Emits `state` when it has changed.
 *
 * @typedef {{number: number, count: number, firstFrame: number, numFrames: number}} Piece one block of the film
 * @typedef {{version: number, fps: number, size?: number[], pieces: Piece[]}} FilmState size: width and height in pixels
 * @typedef {{id: string, version: number, number: number, count: number, first_frame?: number, num_frames?: number}} Change
 * @typedef {(path: string, options?: object) => Promise<Response>} Fetch
 */

export class FilmFeed extends EventTarget {
  /** @type {FilmState | null} */
  state = null;
  #fetch;
  #isAsking = false;
  #newest = 0; // version that an event has named

  /** @param {Fetch} fetch of the host @param {string} id of the film */
  constructor(fetch, id) {
    super();
    this.#fetch = fetch;
    this.id = id;
  }

  /** Take notice of a change of the film: a piece more is known from the event alone. @param {Change} change */
  notice(change) {
    this.#newest = Math.max(this.#newest, change.version);
    const { state } = this;
    if (!state || change.version !== state.version + 1 || change.number !== state.pieces.length) return this.refresh();
    const { number, count, first_frame: firstFrame = 0, num_frames: numFrames = 0 } = change;
    this.#set({ ...state, version: change.version, pieces: [...state.pieces, { number, count, firstFrame, numFrames }] });
  }

  /** Ask for the state, and again if it has changed meanwhile. */
  async refresh() {
    if (this.#isAsking) return;
    this.#isAsking = true;
    try {
      let last;
      do {
        last = this.#newest;
        const answer = await this.#fetch(`/longlive/film/${this.id}`);
        if (answer.ok) this.#set(readFilm(await answer.json()));
      } while (this.#newest > last && (this.state?.version ?? 0) < this.#newest);
    } catch {
      // the host does not answer; its next event asks again
    } finally {
      this.#isAsking = false;
    }
  }

  #set(/** @type {FilmState} */ state) {
    if (this.state && state.version < this.state.version) return;
    this.state = state;
    this.dispatchEvent(new Event("state"));
  }
}

/** Read what the host says of a film. @param {any} answer @returns {FilmState} */
export function readFilm({ version = 0, fps = 16, size = [0, 0], pieces = [] }) {
  const read = (/** @type {number[]} */ [number, count, firstFrame, numFrames]) => ({ number, count, firstFrame, numFrames });
  return { version, fps, size, pieces: pieces.map(read) };
}

/** Name what MediaSource is to decode, by the header of a film. @param {Uint8Array} header */
export function nameCodec(header) {
  const text = Array.from(header, (byte) => String.fromCharCode(byte)).join("");
  const place = text.indexOf("avcC") + 5;
  const profile = [...header.subarray(place, place + 3)].map((byte) => byte.toString(16).padStart(2, "0"));
  return `video/mp4; codecs="avc1.${profile.join("")}"`;
}

/**
 * Choose what to do next so that a buffer holds the film around the play-head.
 * A time to remove from or up to, a piece to fetch, or null if nothing is to do.
 * @param {Map<number, Piece>} held pieces in the buffer by number
 * @param {FilmState} state @param {number} seconds of the play-head
 * @param {{behind: number, ahead: number}} span seconds to keep before and after it
 * @returns {{remove: Piece[]} | {fetch: Piece} | null}
 */
export function chooseStep(held, { fps, pieces }, seconds, { behind, ahead }) {
  const ordered = [...held.values()].sort((a, b) => a.number - b.number);
  const gone = ordered.findIndex(({ number, count }) => pieces[number]?.count !== count);
  if (gone >= 0) return { remove: ordered.slice(gone) };
  const start = (/** @type {Piece} */ piece) => piece.firstFrame / fps;
  const end = (/** @type {Piece} */ piece) => (piece.firstFrame + piece.numFrames) / fps;
  const old = ordered.filter((piece) => end(piece) < seconds - behind);
  if (old.length) return { remove: old };
  const far = ordered.filter((piece) => start(piece) > seconds + 2 * ahead);
  if (far.length) return { remove: far };
  const wanted = pieces.find(
    (piece) => piece.numFrames && !held.has(piece.number) && end(piece) > seconds && start(piece) <= seconds + ahead);
  return wanted ? { fetch: wanted } : null;
}
