// @ts-check
/** The one file that meets ComfyUI's frontend: it shows a timeline's text as a timeline, and what a session holds. */
// @ts-ignore: served by the host
import { app } from "../../scripts/app.js";
import { TimelineView } from "./timeline/view.js";

const MIN_HEIGHT = 260; // in units of the canvas: ruler, two rows, foot
const MIN_SIZE = [400, 420]; // of a new node
/** @type {Map<string, HTMLElement | null>} where Nodes 2.0 had put the editor of a node: it does so only once */
const homes = new Map();
const KEPT_EVENTS = "pointerdown pointermove pointerup mousedown dblclick contextmenu wheel keydown keyup".split(" ");

app.registerExtension({
  name: "longlive.timeline",
  nodeCreated(/** @type {any} */ node) {
    if (node.constructor.comfyClass === "LongLiveTimeline") showTimeline(node);
    if (node.constructor.comfyClass === "LongLiveSessionInfo") showReport(node);
  },
});

/** Hide the widget `script` behind an editor. It stays the one truth; without it the node is left alone. */
function showTimeline(/** @type {any} */ node) {
  const script = node.widgets?.find((/** @type {any} */ widget) => widget.name === "script");
  if (!script || !node.addDOMWidget) return;
  addStyle();
  const view = new TimelineView();
  view.element.dataset.captureWheel = "true"; // Nodes 2.0 asks here
  for (const type of KEPT_EVENTS) view.element.addEventListener(type, keepFromCanvas);
  const options = { serialize: false, getMinHeight: () => MIN_HEIGHT, getValue: () => script.value };
  const widget = node.addDOMWidget("timeline", "LONGLIVE_TIMELINE", view.element, options);
  Object.defineProperty(widget, "width", { get: () => undefined, set() {} }); // the side panel would narrow it for good
  widget.serialize = false; // the workflow holds the script, nothing else
  script.hidden = true;
  script.options.hidden = true; // Nodes 2.0 asks here

  const read = () => ((view.block = blockOf(node)), (view.value = script.value ?? ""));
  const lock = () => {
    const input = node.inputs?.find((/** @type {any} */ slot) => slot.widget?.name === "script");
    view.locked = input?.link == null ? "" : "The script comes from the connected input.";
  };
  view.addEventListener("change", () => (script.value = view.value));
  view.addEventListener("changed", rememberForUndo);
  view.element.addEventListener("pointerenter", read); // a promoted widget may have been edited elsewhere
  chain(script, "callback", read);
  chain(node, "onConfigure", () => (read(), lock(), setTimeout(() => bringHome(node, view.element))));
  chain(node, "onConnectionsChange", lock);
  chain(widget, "onRemove", () => {
    homes.set(String(node.id), view.element.parentElement);
    view.dispose();
  });
  read();
  node.setSize(node.size.map((/** @type {number} */ length, /** @type {number} */ i) => Math.max(length, MIN_SIZE[i])));
}

/** An undo makes the node anew, but Nodes 2.0 keeps its page and leaves the editor out. */
function bringHome(/** @type {any} */ node, /** @type {HTMLElement} */ element) {
  const home = homes.get(String(node.id));
  homes.delete(String(node.id));
  if (!element.isConnected && home?.isConnected) home.replaceChildren(element);
}

/** Show the report of a node below its sockets, once it has run. */
function showReport(/** @type {any} */ node) {
  if (!node.addDOMWidget) return;
  addStyle();
  const page = Object.assign(document.createElement("pre"), { className: "longlive-report" });
  for (const type of KEPT_EVENTS) page.addEventListener(type, keepFromCanvas);
  const widget = node.addDOMWidget("report", "LONGLIVE_REPORT", page, { serialize: false, getValue: () => "" });
  widget.serialize = false;
  chain(node, "onExecuted", (/** @type {any} */ shown) => (page.textContent = shown?.text?.join("") ?? ""));
}

/** Frames in a block of the session this node goes on with, as the options before it say. */
function blockOf(/** @type {any} */ node) {
  const passed = new Set(); // of a graph wired into a ring
  let source = originOf(node, "session");
  for (; originOf(source, "session") && !passed.has(source); source = originOf(source, "session")) passed.add(source);
  const options = originOf(source, "options");
  return options?.widgets?.find((/** @type {any} */ widget) => widget.name === "block")?.value ?? 3;
}

/** The node at the other end of an input, if there is one. */
function originOf(/** @type {any} */ node, /** @type {string} */ name) {
  const slot = node?.inputs?.findIndex((/** @type {any} */ input) => input.name === name) ?? -1;
  return slot < 0 ? null : node.getInputNode?.(slot);
}

/** The host takes its snapshots on mouse and key events, which the editor keeps to itself. */
function rememberForUndo() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

/** Pointer, wheel and keys belong to the editor; queueing and zooming with Ctrl still reach the host. */
function keepFromCanvas(/** @type {any} */ event) {
  const forHost = (event.ctrlKey || event.metaKey) && (event.key === "Enter" || event.type === "wheel");
  if (!forHost) event.stopPropagation();
}

function addStyle() {
  const href = new URL("./timeline/timeline.css", import.meta.url).href;
  if (document.querySelector(`link[href="${href}"]`)) return;
  document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href }));
}

/** Run `after` behind whatever `target[name]` already does, keeping its result. */
function chain(/** @type {any} */ target, /** @type {string} */ name, /** @type {(...args: any[]) => void} */ after) {
  const before = target[name];
  target[name] = function (/** @type {any[]} */ ...args) {
    const result = before?.apply(this, args);
    after(...args);
    return result;
  };
}
