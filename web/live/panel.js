// @ts-check
/**
 * The panel of a directed run: the film as it grows, its ruler, the next prompt, the buttons.
 * Knows no host. Emits `change` when it has set `take` or `script`, `changed` after a finished edit of them, `start` when
 * the graph is to be queued with them.
 */
import { drawDrift } from "../film/chart.js";
import { make } from "../timeline/elements.js";
import { RunButtons } from "./buttons.js";
import {
  planAgain, DelayMeter, describeStatus, isRunning, layRuler, listActions, locateBlock, writeTake, writeTime,
} from "./model.js";
import { RulerView } from "./ruler.js";
import { LiveRun } from "./run.js";
import { SayForm } from "./say.js";
import { StageView } from "./stage.js";

/**
 * @import { Change } from "../film/feed.js"
 * @import { State } from "./model.js"
 * @import { Fetch } from "./run.js"
 * @import { OpenFilm } from "./stage.js"
 */

const FRAME_HEIGHT = 276; // px of all but the film
const MIN_FILM = 150; // px

export class LivePanel extends EventTarget {
  #take = "";
  #isQueued = false; // and its run has not begun
  #wasRunning = false;
  #problem = "";
  #note = "";
  #shownDelay = 0; // seconds from the last send to its first frame on the screen
  #meter = new DelayMeter();
  #isMine = false; // begun by this page

  /** @param {Fetch} fetch of the host @param {OpenFilm} openFilm */
  constructor(fetch, openFilm) {
    super();
    this.stage = new StageView(openFilm);
    this.run = new LiveRun(fetch, drawHex(8), () => this.stage.seconds);
    this.ruler = new RulerView();
    this.say = new SayForm();
    this.buttons = new RunButtons();
    this.status = make("p", { className: "longlive-live-status", role: "status" });
    this.delay = make("output", { className: "longlive-live-delay" });
    this.delay.title = "From sending a prompt to its first frame: decoded, and on the screen";
    this.warning = make("p", { className: "longlive-live-warning", hidden: true });
    this.text = make("textarea", { className: "longlive-live-script", rows: 3, spellcheck: false, ariaLabel: "Script" });
    this.text.placeholder = "8s | What the film begins with, if anything";
    this.source = make("p", { className: "longlive-live-source" });
    this.details = make("details", { className: "longlive-live-details" });
    this.details.append(make("summary", { textContent: "script" }), this.source, this.text);
    this.foot = make("footer", { className: "longlive-live-foot" });
    this.foot.append(this.details, this.delay);
    this.element = make("section", { className: "longlive-panel longlive-live", ariaLabel: "Live" });
    this.drift = make("div", { className: "longlive-live-drift", hidden: true });
    this.element.append(this.stage.element, this.ruler.element, this.drift, this.say.element, this.buttons.element);
    this.element.append(this.status, this.warning, this.foot);
    this.#listen();
    this.#refresh();
  }

  /** The address of the run, 32 hex digits, or "". Setting it shows that run. */
  get take() {
    return this.#take;
  }

  set take(take) {
    if (take === this.#take) return;
    this.#open(take, { isNew: false });
  }

  /** The script that a run begins with. Setting it emits nothing. */
  get script() {
    return this.text.value;
  }

  set script(script) {
    this.text.value = script;
    this.#refresh();
  }

  /** What the host says of the newest prompt. */
  set note(/** @type {string} */ note) {
    if (note === this.#note) return;
    this.#note = note;
    this.#showStatus();
  }

  /** Height in px below which parts would be hidden. */
  get minHeight() {
    return FRAME_HEIGHT + MIN_FILM;
  }

  /** Lock the script for a reason; "" unlocks it. @param {string} reason */
  lock(reason) {
    this.text.disabled = Boolean(reason);
    this.source.textContent = reason;
  }

  /** Take notice that the host has nothing left to do: a queued run that has not begun never will. @param {string} problem */
  async settle(problem) {
    if (!this.#isQueued) return;
    await this.run.refresh();
    if (!this.#isQueued) return;
    this.#isQueued = false;
    this.#problem = problem;
    this.#refresh();
  }

  /** Show a film that the node makes of its script, without being directed. @param {string} id */
  watch(id) {
    if (id === this.#take || this.#isQueued || isRunning(this.run.state)) return;
    this.stage.showFilm(id);
    this.ruler.show(null);
    this.#showDrift(null);
    this.#problem = "";
    this.#note = "This is the film of the script.";
    this.#refresh();
  }

  /** Take notice of a change of a film. @param {Change} change */
  noticeFilm(change) {
    this.stage.notice(change);
  }

  /** Ask for all that may have changed meanwhile. */
  refresh() {
    this.run.refresh();
    this.stage.refresh();
  }

  dispose() {
    this.run.dispose();
    this.say.dispose();
    this.stage.clear();
    this.element.remove();
  }

  #listen() {
    this.run.addEventListener("state", () => this.#takeState());
    this.run.addEventListener("problem", (event) => this.#complain(event));
    this.say.addEventListener("problem", (event) => this.#complain(event));
    this.say.addEventListener("say", (event) => this.#send(/** @type {CustomEvent} */ (event).detail));
    this.say.addEventListener("typed", () => {
      const prompt = this.say.prompt.trim();
      if (prompt) this.run.hint({ do: "prepare", prompt });
    });
    this.stage.addEventListener("time", () => this.#takeTime());
    this.stage.addEventListener("shown", (event) => this.#measure(/** @type {CustomEvent} */ (event).detail));
    this.ruler.addEventListener("hold", () => this.stage.hold());
    this.ruler.addEventListener("choose", () => this.#takeChoice());
    this.ruler.addEventListener("later", (event) => this.say.plan(/** @type {CustomEvent} */ (event).detail));
    this.buttons.addEventListener("press", (event) => this.#press(/** @type {CustomEvent} */ (event).detail));
    this.text.addEventListener("input", () => (this.#refresh(), this.#emit("change")));
    this.text.addEventListener("change", () => this.#emit("changed"));
  }

  /** @param {string} take @param {{isNew: boolean}} options */
  #open(take, options) {
    this.#take = take;
    this.#problem = this.#note = "";
    this.#shownDelay = 0;
    this.#wasRunning = false;
    this.#isMine = options.isNew;
    this.stage.clear();
    this.run.open(take, options);
  }

  /** Begin a run: the script first, then what is said. */
  #direct() {
    const { state } = this.run;
    const planned = state && state.script.trim() === this.script.trim() ? planAgain(state) : [];
    this.#open(drawHex(16), { isNew: true });
    for (const message of planned) this.run.send(message);
    this.#isQueued = true;
    this.#refresh();
    for (const type of ["change", "changed", "start"]) this.#emit(type);
  }

  /** @param {string} button */
  #press(button) {
    if (button === "main") this.#takeMain();
    if (button === "rewind") this.#rewind();
    if (button === "reseed") this.#order({ do: "seed", seed: crypto.getRandomValues(new Uint32Array(1))[0] });
    if (button === "stop") this.#order({ do: "stop" });
  }

  #takeMain() {
    const { main } = this.#actions;
    if (main !== "direct") this.#order({ do: main });
    else if (this.say.prompt.trim()) this.say.send();
    else this.#direct();
  }

  /** @param {any} message of the form */
  #send(message) {
    if (!isRunning(this.run.state) && !this.#isQueued) this.#direct();
    this.#meter.send(message.prompt, performance.now() / 1000, this.run.state);
    this.#order(message);
  }

  #rewind() {
    if (this.ruler.chosen === null) return;
    this.#order({ do: "rewind", to: this.ruler.chosen });
    this.#note = "";
    this.ruler.release();
  }

  /** @param {object} message */
  #order(message) {
    this.#problem = "";
    this.run.send(message);
    this.#refresh();
  }

  #takeChoice() {
    const { chosen } = this.ruler;
    if (chosen !== null && this.run.state) this.stage.seek(locateBlock(this.run.state, chosen));
    this.#refresh();
  }

  #takeState() {
    const { state } = this.run;
    if (state) {
      this.#isQueued = false;
      if (isRunning(state) && !this.#wasRunning) this.#problem = "";
      this.#meter.see(state);
      this.stage.showFilm(state.take, isRunning(state) && !this.#isMine);
      if (!isRunning(state)) {
        this.stage.finish();
        this.#keepScript(state);
      }
      this.#wasRunning = isRunning(state);
    }
    this.ruler.show(state);
    this.#showDrift(state);
    this.#refresh();
  }

  /** Keep what was directed as the script, unless the user has written another since. @param {State} state */
  #keepScript({ script, beginsWith }) {
    if (!script || script === this.script || this.script.trim() !== beginsWith.trim()) return;
    this.script = script;
    for (const type of ["change", "changed"]) this.#emit(type);
  }

  #takeTime() {
    this.ruler.play(this.stage.seconds);
    this.stage.showStatus(this.run.state, this.#isQueued);
  }

  /** @param {number} block that became visible */
  #measure(block) {
    const seconds = this.#meter.show(block, performance.now() / 1000);
    if (seconds === null) return;
    this.#shownDelay = seconds;
    this.#refresh();
  }

  get #actions() {
    return listActions(this.run.state, { script: this.script, chosen: this.ruler.chosen, isQueued: this.#isQueued });
  }

  #refresh() {
    const { state } = this.run;
    const { chosen } = this.ruler;
    const place = chosen === null || !state ? "" : `block ${chosen}, at ${writeTime(locateBlock(state, chosen), 2)}`;
    this.buttons.show(this.#actions, place);
    this.#showStatus();
    this.stage.showStatus(state, this.#isQueued);
    this.stage.showQueue(state);
    const [decoded, seen] = [state?.delay, this.#shownDelay].map((seconds) => seconds && `${seconds.toFixed(1)} s`);
    this.delay.textContent = [decoded && `made in ${decoded}`, seen && `seen in ${seen}`].filter(Boolean).join(", ");
  }

  #showStatus() {
    const { state } = this.run;
    const { tone, sentence } = describeStatus(state, this.#isQueued);
    const isSilent = !state?.sentence && (tone === "live" || this.stage.film !== this.#take);
    this.status.textContent = this.#problem || (isSilent && this.#note) || sentence;
    this.status.dataset.tone = this.#problem ? "bad" : tone;
    this.warning.textContent = state?.drift.warn ?? "";
    this.warning.hidden = !this.warning.textContent;
  }

  /** Draw how far each block is from the first seconds, below its place on the ruler. @param {State | null} state */
  #showDrift(state) {
    this.drift.hidden = !state?.drift.rows?.length;
    if (!this.drift.hidden) drawDrift(this.drift, state?.drift, { seconds: layRuler(state).span });
  }

  /** @param {Event} event */
  #complain(event) {
    this.#problem = /** @type {CustomEvent} */ (event).detail;
    this.#refresh();
  }

  /** @param {string} type */
  #emit(type) {
    this.dispatchEvent(new Event(type));
  }
}

/** Draw random hex digits, two a byte; also where the page is not a secure context. @param {number} bytes */
function drawHex(bytes) {
  return writeTake(crypto.getRandomValues(new Uint8Array(bytes)));
}
