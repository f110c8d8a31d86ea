// @ts-check
/**
 * A directed run as the host has it: its state, the messages to it, the heartbeat of a viewer. Knows no page.
 * Emits `state` when the state changed, and `problem` with a sentence in `detail` when the host refused something.
 */
import { isRunning, readState } from "./model.js";

/**
 * @import { State } from "./model.js"
 * @typedef {(path: string, options?: object) => Promise<Response>} Fetch
 */

const HEARTBEAT = 2000; // ms between two
const LONG_SILENCE = 4; // heartbeats

export class LiveRun extends EventTarget {
  /** @type {State | null} */
  state = null;
  take = "";
  #fetch;
  #viewer;
  #playhead = () => 0;
  #silence = 0; // heartbeats since the state was asked for
  #isNew = false; // and may begin at any moment
  #isAsking = false;
  #mustAskAgain = false;
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #heart;
  /** @type {object[]} messages to a run that has not begun */
  #early = [];
  #sending = Promise.resolve(); // one message after the other, so that they keep their order

  /** @param {Fetch} fetch of the host @param {string} viewer 8 to 32 hex digits @param {() => number} playhead in seconds */
  constructor(fetch, viewer, playhead) {
    super();
    this.#fetch = fetch;
    this.#viewer = viewer;
    this.#playhead = playhead;
  }

  /** Turn to another take; "" is none. @param {string} take @param {{isNew?: boolean}} [options] whether it has yet to begin */
  open(take, { isNew = false } = {}) {
    if (take === this.take) return;
    this.take = take;
    this.state = null;
    this.#early = [];
    this.#silence = 0;
    this.#isNew = isNew;
    clearInterval(this.#heart);
    if (take) this.#heart = setInterval(() => this.#beat(), HEARTBEAT);
    this.dispatchEvent(new Event("state"));
    if (!isNew) this.refresh();
  }

  dispose() {
    clearInterval(this.#heart);
    this.take = "";
  }

  /** Take notice that the state has changed. @param {{take: string, version: number}} change */
  notice({ take, version }) {
    if (take === this.take && version !== this.state?.version) this.refresh();
  }

  /** Ask for the state; while one answer is under way, once more after it. */
  async refresh() {
    if (!this.take || this.#isAsking) {
      this.#mustAskAgain = this.#isAsking;
      return;
    }
    this.#isAsking = true;
    this.#silence = 0;
    const take = this.take;
    try {
      const answer = await this.#fetch(`/longlive/live/${take}`);
      const state = answer.ok ? readState(await answer.json()) : null;
      if (take === this.take) this.#set(state);
    } catch {
      this.#complain("The host does not answer.");
    } finally {
      this.#isAsking = false;
    }
    if (this.#mustAskAgain || take !== this.take) {
      this.#mustAskAgain = false;
      await this.refresh();
    }
  }

  /** Send a message; one to a run that has not begun is sent when it begins. @param {object} message */
  async send(message) {
    if (!this.state) {
      this.#early.push(message);
      return;
    }
    this.#sending = this.#sending.then(() => this.#post(message));
    await this.#sending;
  }

  /** Send a message whose loss does not matter. @param {object} message */
  async hint(message) {
    if (isRunning(this.state)) await this.#post(message, false);
  }

  /** @param {State | null} state */
  #set(state) {
    this.state = state;
    this.dispatchEvent(new Event("state"));
    if (state) for (const message of this.#early.splice(0)) this.send(message);
  }

  #beat() {
    this.#silence += 1;
    if (isRunning(this.state)) this.hint({ do: "watch", seconds: this.#playhead(), viewer: this.#viewer });
    else if (this.state || !this.#isNew) return;
    if (this.#silence >= LONG_SILENCE) this.refresh(); // a message of the host may be lost
  }

  /** @param {object} message @param {boolean} [matters] */
  async #post(message, matters = true) {
    const headers = { "Content-Type": "application/json" };
    try {
      const answer = await this.#fetch(`/longlive/live/${this.take}`, { method: "POST", headers, body: JSON.stringify(message) });
      if (answer.ok || !matters) return;
      const refusal = await answer.json().catch(() => ({}));
      this.#complain(refusal.error ?? `The host refused it: ${answer.status}.`);
      if (answer.status === 404 || answer.status === 409) this.refresh();
    } catch {
      if (matters) this.#complain("The host does not answer, so nothing was sent.");
    }
  }

  /** @param {string} sentence */
  #complain(sentence) {
    this.dispatchEvent(new CustomEvent("problem", { detail: sentence }));
  }
}
