// @ts-check
/**
 * Gives a video element the film around its play-head through a MediaSource, piece by piece. After a rewind the dropped
 * pieces leave the buffer. Emits `refused` where the browser or the page's policy does not take it.
 */
import { chooseStep, nameCodec } from "./feed.js";

/**
 * @import { FilmState, Piece } from "./feed.js"
 */

const SPAN = { behind: 60, ahead: 60 }; // seconds of film in memory before and after the play-head
const SMALLEST_SPAN = 2;
const RETRY = 1000; // ms after the host did not answer

export class FilmBuffer extends EventTarget {
  #video;
  #get;
  #source = new MediaSource();
  #url = URL.createObjectURL(this.#source);
  #events = new AbortController(); // ends all that it listens to
  #span = { ...SPAN };
  #isBusy = false;
  #mustGoOn = false;
  /** @type {Map<number, Piece>} */
  #held = new Map();
  /** @type {SourceBuffer | null} */
  #buffer = null;
  /** @type {FilmState | null} */
  #state = null;
  #isWhole = false;

  static get isPossible() {
    return typeof MediaSource !== "undefined";
  }

  get hasPieces() {
    return this.#held.size > 0;
  }

  /** @param {HTMLVideoElement} video @param {(name: string) => Promise<ArrayBuffer | null>} get a file of the film, null if it is gone */
  constructor(video, get) {
    super();
    this.#video = video;
    this.#get = get;
    const { signal } = this.#events;
    this.#source.addEventListener("sourceopen", () => this.#fill(), { signal });
    video.addEventListener("error", () => this.#refuse(), { signal });
    for (const type of ["timeupdate", "seeking"]) video.addEventListener(type, () => this.#fill(), { signal });
    video.src = this.#url;
  }

  /** Show a state of the film. `isWhole`: nothing will be appended. @param {FilmState} state @param {boolean} isWhole */
  update(state, isWhole) {
    this.#state = state;
    this.#isWhole = isWhole;
    this.#fill();
  }

  dispose() {
    this.#events.abort();
    URL.revokeObjectURL(this.#url);
  }

  /** Take step after step until the buffer holds what it should. */
  async #fill() {
    this.#mustGoOn = true;
    if (this.#isBusy) return;
    this.#isBusy = true;
    try {
      while (this.#mustGoOn && !this.#events.signal.aborted) {
        this.#mustGoOn = false;
        if (await this.#step()) this.#mustGoOn = true;
      }
    } catch (error) {
      if (error instanceof DOMException && error.name === "QuotaExceededError" && this.#shrink()) this.#retry(0);
      else if (error instanceof TypeError) this.#retry(RETRY); // of the network
      else this.#refuse();
    } finally {
      this.#isBusy = false;
    }
  }

  /** Take a step; return whether there was one to take. */
  async #step() {
    const state = this.#state;
    if (!state?.pieces.some(({ numFrames }) => numFrames) || this.#source.readyState === "closed") return false;
    if (!this.#buffer) return this.#begin();
    const step = chooseStep(this.#held, state, this.#video.currentTime, this.#span);
    if (!step) return this.#settle(state);
    const half = 0.5 / state.fps; // of a frame, so that rounding takes no frame too many
    if ("remove" in step) {
      const [first, last] = [step.remove[0], step.remove[step.remove.length - 1]];
      const end = (last.firstFrame + last.numFrames) / state.fps - half;
      await this.#change((buffer) => buffer.remove(Math.max(0, first.firstFrame / state.fps - half), end));
      for (const { number } of step.remove) this.#held.delete(number);
      return true;
    }
    const { number, count } = step.fetch;
    const media = await this.#get(`${number}.${count}.m4s`);
    if (!media) return false; // a rewind has dropped it; the next state says so
    if (this.#state?.pieces[number]?.count !== count) return true;
    await this.#change((buffer) => buffer.appendBuffer(media));
    this.#held.set(number, step.fetch);
    return true;
  }

  async #begin() {
    const header = await this.#get("init.mp4");
    if (!header || this.#events.signal.aborted) return false;
    this.#buffer = this.#source.addSourceBuffer(nameCodec(new Uint8Array(header)));
    await this.#change((buffer) => buffer.appendBuffer(header));
    return true;
  }

  /** Let the element know how long the film is; say that it is over, if it is. @param {FilmState} state */
  #settle(state) {
    const last = state.pieces.findLast(({ numFrames }) => numFrames);
    if (!last || this.#source.readyState !== "open") return false;
    const length = (last.firstFrame + last.numFrames) / state.fps;
    if (this.#source.duration !== length) this.#source.duration = length;
    if (this.#video.currentTime > length) this.#video.currentTime = length;
    if (this.#isWhole && this.#held.has(last.number)) this.#source.endOfStream();
    return false;
  }

  /** Change the buffer and wait until it is done. @param {(buffer: SourceBuffer) => void} act */
  #change(act) {
    const buffer = /** @type {SourceBuffer} */ (this.#buffer);
    return new Promise((resolve, reject) => {
      const change = new AbortController();
      const { signal } = change;
      const end = (/** @type {() => void} */ settle) => () => (change.abort(), settle());
      const fail = end(() => reject(new DOMException("the buffer refused a piece", "EncodingError")));
      buffer.addEventListener("updateend", end(() => resolve(undefined)), { signal });
      buffer.addEventListener("error", fail, { signal });
      this.#events.signal.addEventListener("abort", fail, { signal });
      try {
        act(buffer);
      } catch (error) {
        reject(error);
      }
    });
  }

  /** Keep less in memory; return whether that is possible. */
  #shrink() {
    this.#span = { behind: this.#span.behind / 2, ahead: this.#span.ahead / 2 };
    return this.#span.ahead > SMALLEST_SPAN;
  }

  #retry(/** @type {number} */ delay) {
    setTimeout(() => this.#fill(), delay);
  }

  #refuse() {
    if (!this.#events.signal.aborted) this.dispatchEvent(new Event("refused"));
  }
}
