// @ts-check
/**
 * A player of a film that grows: `show` gives it the film's state after every change. Knows no host.
 * Emits `time` when the play-head moves, and `shown` with the number of a block in `detail` when that is on the screen.
 */
import { make } from "../timeline/elements.js";
import { FilmBuffer } from "./buffer.js";
import { FilmFile } from "./file.js";

/**
 * @import { Fetch, FilmState } from "./feed.js"
 */

export class FilmPlayer extends EventTarget {
  /** @type {FilmState | null} */
  #state = null;
  /** @type {FilmBuffer | FilmFile | null} */
  #source = null;
  #isWhole = false;
  #isDisposed = false;
  #block = -1; // on the screen
  #fetch;
  #address;
  #locate;
  #atEdge;

  /** Whether this page's policy has refused a MediaSource. */
  static isRefused = false;

  /**
   * @param {Fetch} fetch of the host @param {(path: string) => string} locate the address of a path of the host
   * @param {string} id of the film @param {{atEdge?: boolean}} [options] atEdge: begin with the newest block
   */
  constructor(fetch, locate, id, { atEdge = false } = {}) {
    super();
    this.#fetch = fetch;
    this.#address = `/longlive/film/${id}`;
    this.#locate = locate;
    this.#atEdge = atEdge;
    this.video = make("video", { className: "longlive-film-video", muted: true, autoplay: true, playsInline: true, controls: true });
    this.still = make("canvas", { className: "longlive-film-still" });
    this.element = make("div", { className: "longlive-film" });
    this.element.append(this.still, this.video);
    for (const type of ["timeupdate", "seeking", "ended"]) this.video.addEventListener(type, () => this.#tell());
    this.#watchFrames();
  }

  /** The play-head. */
  get seconds() {
    return this.video.currentTime;
  }

  /** Show a state of the film. @param {FilmState} state */
  show(state) {
    if (this.#isDisposed) return; // the answer came late
    const isFirst = !this.#state?.pieces.length;
    this.#state = { ...state, version: state.version ?? 0 };
    if (!state.pieces.length && !this.#source) return;
    this.#source ??= this.#open();
    if (isFirst && this.#atEdge) this.seek((state.pieces.at(-1)?.firstFrame ?? 0) / state.fps);
    this.#source.update(this.#state, this.#isWhole);
  }

  /** Let the film be over: nothing will be appended, unless `show` says otherwise. */
  finish() {
    this.#isWhole = true;
    if (this.#state) this.#source?.update(this.#state, true);
  }

  /** @param {number} seconds */
  seek(seconds) {
    this.video.currentTime = seconds;
  }

  play() {
    this.video.play().catch(() => {}); // without data, or without leave of the browser
  }

  dispose() {
    this.#isDisposed = true;
    this.#source?.dispose();
    this.video.removeAttribute("src");
    this.video.load();
    this.element.remove();
  }

  #open() {
    if (FilmPlayer.isRefused || !FilmBuffer.isPossible) return this.#openFile();
    const buffer = new FilmBuffer(this.video, (name) => this.#get(name));
    buffer.addEventListener("refused", () => this.#fallBack());
    return buffer;
  }

  #openFile() {
    return new FilmFile(this.video, (name) => this.#locate(`${this.#address}/${name}`), () => this.#keepPicture());
  }

  #fallBack() {
    FilmPlayer.isRefused ||= this.#source instanceof FilmBuffer && !this.#source.hasPieces;
    this.#source?.dispose();
    this.#source = this.#openFile();
    if (this.#state) this.#source.update(this.#state);
  }

  /** @param {string} name of a file of the film @returns {Promise<ArrayBuffer | null>} */
  async #get(name) {
    const answer = await this.#fetch(`${this.#address}/${name}`);
    if (answer.status === 404) return null;
    if (!answer.ok) throw new TypeError(`the host answers ${answer.status}`);
    return answer.arrayBuffer();
  }

  /** Draw what the element shows behind it, because it shows nothing while it loads another file. */
  #keepPicture() {
    const { videoWidth: width, videoHeight: height } = this.video;
    if (!width) return;
    Object.assign(this.still, { width, height });
    this.still.getContext("2d")?.drawImage(this.video, 0, 0);
  }

  /** Tell of every frame on the screen, where the browser says so. */
  #watchFrames() {
    if (!("requestVideoFrameCallback" in this.video)) return;
    this.video.requestVideoFrameCallback((_, { mediaTime }) => {
      if (this.#isDisposed) return;
      this.#tell(mediaTime);
      this.#watchFrames();
    });
  }

  #tell(seconds = this.video.currentTime) {
    this.dispatchEvent(new Event("time"));
    const { fps, pieces } = this.#state ?? { fps: 16, pieces: [] };
    const frame = Math.floor(seconds * fps + 0.5);
    const block = pieces.findIndex(({ firstFrame, numFrames }) => frame >= firstFrame && frame < firstFrame + numFrames);
    const shown = block < 0 ? -1 : pieces[block].count; // after a rewind another one has its number
    if (shown === this.#block || block < 0 || this.video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA) return;
    this.#block = shown;
    this.dispatchEvent(new CustomEvent("shown", { detail: block }));
  }
}
