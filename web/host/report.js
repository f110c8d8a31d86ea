// @ts-check
/** The report of a session on its node, and how its pictures drift. */
import { drawDrift } from "../film/chart.js";
import { keepEvents } from "./canvas.js";
import { addStyle, chain } from "./nodes.js";

/** Show the report of a node below its sockets, once it has run. */
export function showReport(/** @type {any} */ app, /** @type {any} */ node) {
  if (!node.addDOMWidget) return;
  addStyle("panel.css");
  const page = Object.assign(document.createElement("div"), { className: "longlive-report" });
  const chart = Object.assign(document.createElement("div"), { hidden: true });
  const text = document.createElement("pre");
  page.append(chart, text);
  keepEvents(app, page);
  const widget = node.addDOMWidget("report", "LONGLIVE_REPORT", page, { serialize: false, getValue: () => "" });
  widget.serialize = false;
  chain(node, "onExecuted", (/** @type {any} */ shown) => {
    const [drift] = shown?.longlive_drift ?? [];
    chart.hidden = !drift;
    drawDrift(chart, drift);
    text.replaceChildren(...(shown?.text?.join("") ?? "").split("\n").map(makeLine));
  });
}

/** Make a line of a report; a row of a table is not broken. */
function makeLine(/** @type {string} */ line) {
  const className = line.startsWith("|") ? "longlive-report-row" : "";
  return Object.assign(document.createElement("div"), { className, textContent: line || " " });
}
