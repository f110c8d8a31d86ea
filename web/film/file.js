// @ts-check
/** Gives a video element the file of a film, and a longer one where it has come to the end: for pages without MediaSource. */

/**
 * @import { FilmState, Piece } from "./feed.js"
 */

const NEAR = 0.4; // seconds before the end of a file, when a longer one is loaded
const RETRY = 1000; // ms after the host did not answer

export class FilmFile {
  #video;
  #locate;
  #events = new AbortController();
  /** @type {Piece[]} */
  #pieces = []; // of the file that is loaded
  /** @type {FilmState | null} */
  #state = null;

  /** @param {HTMLVideoElement} video @param {(name: string) => string} locate the address of a file of the film @param {() => void} keep the picture while another file loads */
  constructor(video, locate, keep) {
    this.#video = video;
    this.#locate = locate;
    this.keep = keep;
    const { signal } = this.#events;
    for (const type of ["timeupdate", "ended"]) video.addEventListener(type, () => this.#follow(), { signal });
    video.addEventListener("error", () => setTimeout(() => this.#load(), RETRY), { signal });
  }

  /** Show a state of the film. @param {FilmState} state */
  update(state) {
    this.#state = state;
    this.#follow();
  }

  dispose() {
    this.#events.abort();
  }

  /** Load the newest file, if the play-head needs it or the loaded one has what a rewind dropped. */
  #follow() {
    const pieces = this.#state?.pieces ?? [];
    const isNew = pieces.at(-1)?.count !== this.#pieces.at(-1)?.count;
    const isGone = this.#pieces.some(({ number, count }) => pieces[number]?.count !== count);
    const isNear = this.#video.ended || this.#video.currentTime > measureLength(this.#pieces, this.#state?.fps) - NEAR;
    if (isGone || (isNew && isNear)) this.#load();
  }

  #load() {
    const { fps, pieces } = this.#state ?? { fps: 16, pieces: [] };
    const length = measureLength(pieces, fps);
    if (this.#events.signal.aborted || !length) return;
    const { currentTime, paused, ended } = this.#video;
    this.keep();
    this.#pieces = pieces;
    this.#video.src = this.#locate(`film.mp4?v=${pieces.at(-1)?.count}`);
    this.#video.currentTime = Math.min(currentTime, length);
    if (!paused || ended) this.#video.play().catch(() => {}); // it may not play yet, or not without a click
  }
}

/** Measure pieces in seconds. @param {Piece[]} pieces */
function measureLength(pieces, fps = 16) {
  const last = pieces.at(-1);
  return last ? (last.firstFrame + last.numFrames) / fps : 0;
}
