// @ts-check
/**
 * The film of a run as it grows, under a badge with its state and the prompts that wait. Knows no host.
 * Emits `time` when the play-head moves, and `shown` with the number of a block in `detail` when that is on the screen.
 */
import { make } from "../timeline/elements.js";
import { describeStatus, locateBlock, measureLength, writeTime } from "./model.js";

/**
 * @import { Change, FilmFeed } from "../film/feed.js"
 * @import { FilmPlayer } from "../film/player.js"
 * @import { State } from "./model.js"
 * @typedef {{player: FilmPlayer, feed: FilmFeed}} Film
 * @typedef {(id: string, options: {atEdge: boolean}) => Film} OpenFilm
 */

const RESUME = 100; // ms after a pause, when a moved element is in its place again

export class StageView extends EventTarget {
  /** @type {Film | null} */
  #film = null;
  #isHeld = false;
  #openFilm;

  /** @param {OpenFilm} openFilm */
  constructor(openFilm) {
    super();
    this.#openFilm = openFilm;
    this.badge = make("div", { className: "longlive-live-badge", hidden: true });
    this.queue = make("ol", { className: "longlive-live-queue", ariaLabel: "Prompts that wait" });
    this.element = make("div", { className: "longlive-live-stage" });
    this.element.title = "Click to hold the film, double-click to fill the screen";
    this.element.append(make("p", { className: "longlive-live-hint", textContent: "The film appears here." }));
    this.element.append(this.badge, this.queue);
    this.element.addEventListener("click", () => this.hold());
    this.element.addEventListener("dblclick", () => this.element.requestFullscreen?.());
  }

  /** The play-head. */
  get seconds() {
    return this.#film?.player.seconds ?? 0;
  }

  /** The id of the film, or "". */
  get film() {
    return this.#film?.feed.id ?? "";
  }

  /** Show a film; `atEdge` begins with its newest block. @param {string} id @param {boolean} atEdge */
  showFilm(id, atEdge = false) {
    if (id === this.#film?.feed.id) return;
    this.clear();
    this.#film = this.#open(id, atEdge);
  }

  /** Let the film be over. */
  finish() {
    this.#film?.player.finish();
  }

  /** Show how the run stands. @param {State | null} state @param {boolean} isQueued */
  showStatus(state, isQueued) {
    const { tone, word } = describeStatus(state, isQueued);
    const times = [this.seconds, measureLength(state)].map((seconds) => writeTime(seconds));
    this.badge.textContent = state ? `${word} ${times.join(" / ")}` : word;
    this.badge.dataset.tone = tone;
    this.badge.hidden = !word;
  }

  /** Show the prompts that wait. @param {State | null} state */
  showQueue(state) {
    this.queue.replaceChildren(...(state?.waiting ?? []).map(({ text, block, seed }) => {
      const isNext = !state || block <= state.pieces.length;
      const before = state?.switches.filter((each) => each.block < block).at(-1);
      const isSeedAlone = seed !== null && before?.text === text;
      const item = make("li", {});
      const when = isNext ? "next" : writeTime(locateBlock(state, block), 1);
      item.append(make("span", { textContent: when }), isSeedAlone ? "new seed" : text);
      return item;
    }));
  }

  /** @param {number} seconds */
  seek(seconds) {
    this.#film?.player.seek(seconds);
  }

  /** Hold the film at a picture, or go on. The run is not paused, but soon has to wait for its viewer. */
  hold() {
    const video = this.#film?.player.video;
    if (!video) return;
    this.#setHeld(!this.#isHeld);
    if (this.#isHeld) video.pause();
    else this.resume();
  }

  /** Go on playing, because a page pauses what is moved in it. */
  resume() {
    if (!this.#isHeld) this.#film?.player.play();
  }

  /** Take notice of a change of a film. @param {Change} change */
  notice(change) {
    if (change.id === this.#film?.feed.id) this.#film.feed.notice(change);
  }

  /** Ask for what may have changed meanwhile. */
  refresh() {
    this.#film?.feed.refresh();
  }

  /** Show no film. */
  clear() {
    this.#film?.player.dispose();
    this.#film = null;
    this.#setHeld(false);
  }

  /** @param {string} id @param {boolean} atEdge */
  #open(id, atEdge) {
    const { player, feed } = this.#openFilm(id, { atEdge });
    player.video.addEventListener("pause", () => setTimeout(() => {
      const { paused, ended } = player.video; // nobody but this stage may pause it, so it was moved in the page
      if (player === this.#film?.player && paused && !ended) this.resume();
    }, RESUME));
    player.addEventListener("time", () => this.dispatchEvent(new Event("time")));
    player.addEventListener("shown", (event) => {
      this.dispatchEvent(new CustomEvent("shown", { detail: /** @type {CustomEvent} */ (event).detail }));
    });
    feed.addEventListener("state", () => {
      this.element.classList.toggle("longlive-live-empty", !feed.state?.pieces.length);
      if (feed.state) player.show(feed.state);
    });
    feed.refresh();
    player.video.controls = false; // the panel has its own
    this.element.prepend(player.element);
    return { player, feed };
  }

  /** @param {boolean} isHeld */
  #setHeld(isHeld) {
    this.#isHeld = isHeld;
    this.element.classList.toggle("longlive-live-held", isHeld);
  }
}
