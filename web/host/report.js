// @ts-check
/** The report of a session on its node. */
import { keepEvents } from "./canvas.js";
import { addStyle, chain } from "./nodes.js";

/** Show the report of a node below its sockets, once it has run. */
export function showReport(/** @type {any} */ app, /** @type {any} */ node) {
  if (!node.addDOMWidget) return;
  addStyle("../timeline/timeline.css");
  const page = Object.assign(document.createElement("pre"), { className: "longlive-report" });
  keepEvents(app, page);
  const widget = node.addDOMWidget("report", "LONGLIVE_REPORT", page, { serialize: false, getValue: () => "" });
  widget.serialize = false;
  chain(node, "onExecuted", (/** @type {any} */ shown) => (page.textContent = shown?.text?.join("") ?? ""));
}
