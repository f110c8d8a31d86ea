// @ts-check
/** The buttons of a run. Emits `press` with the name of the button in `detail`. */
import { make } from "../timeline/elements.js";

/** @import { Actions } from "./model.js" */

const TITLES = {
  direct: "Begin a film: first the script, if there is one, then what you send",
  pause: "Pause; after half a minute the host is free for other work",
  resume: "Make the next blocks",
};

export class RunButtons extends EventTarget {
  constructor() {
    super();
    this.main = this.#make("main", "Direct", "");
    this.rewind = this.#make("rewind", "Rewind here", "");
    this.reseed = this.#make("reseed", "New seed", "From the next block on, other noise under the same prompt");
    this.stop = this.#make("stop", "Stop", "End the film. It stays, and so does its script");
    this.element = make("div", { className: "longlive-live-buttons", role: "group", ariaLabel: "The run" });
    this.element.append(this.main, this.rewind, this.reseed, this.stop);
  }

  /** @param {Actions} actions @param {string} place where a rewind would go to */
  show({ main, label, canBegin, canRewind, canReseed, canStop }, place) {
    this.main.textContent = label;
    this.main.dataset.does = main;
    this.main.title = TITLES[main];
    this.main.disabled = !canBegin;
    this.rewind.disabled = !canRewind;
    this.rewind.title = place
      ? `Take another way from ${place}`
      : "Choose a place on the ruler first; the marks below it are quick to rewind to";
    this.reseed.disabled = !canReseed;
    this.stop.disabled = !canStop;
  }

  /** @param {"main" | "rewind" | "reseed" | "stop"} name @param {string} textContent @param {string} title */
  #make(name, textContent, title) {
    const button = make("button", { className: `longlive-live-${name}`, type: "button", textContent, title });
    button.addEventListener("click", () => this.dispatchEvent(new CustomEvent("press", { detail: name })));
    return button;
  }
}
