// @ts-check
/** The one file that uses ComfyUI's front end: it shows a script as a timeline, and the report of a session. */
// @ts-ignore: served by the host
import { app } from "../../scripts/app.js";
import { TimelineView } from "./timeline/view.js";

const EDITOR = "LONGLIVE_TIMELINE"; // type of the editor's widget
const MIN_SIZE = [400, 330]; // of a new node
const MIN_WIDTH = 300; // of a node, so that the totals fit
const SESSION_COLOR = "#7fc97f";
/** @type {Map<string, HTMLElement | null>} where Nodes 2.0 put the editor of a node, which it does only once */
const homes = new Map();
/** @type {Set<() => void>} called when the text linked into a script may have changed */
const readers = new Set();
const KEPT_EVENTS = "pointerdown pointermove pointerup mousedown dblclick contextmenu wheel keydown keyup".split(" ");

app.registerExtension({
  name: "longlive.timeline",
  setup: colorSessions,
  nodeCreated(/** @type {any} */ node) {
    if (node.constructor.comfyClass === "LongLiveTimeline") showTimeline(node);
    if (node.constructor.comfyClass === "LongLiveSessionInfo") showReport(node);
    if (node.isSubgraphNode?.()) showPromoted(node);
  },
});

/** Put an editor in the place of the widget `script`, under its name. Without that widget the node is left alone. */
function showTimeline(/** @type {any} */ node) {
  const text = node.widgets?.find((/** @type {any} */ widget) => widget.name === "script");
  if (!text || !node.addDOMWidget) return;
  const view = new TimelineView();
  view.value = text.value ?? "";
  const place = node.widgets.indexOf(text);
  node.widgets.splice(place, 1);
  const editor = addEditor(node, "script", view);
  node.widgets.splice(place, 0, node.widgets.pop());

  const read = () => ((view.block = readBlock(node)), lock(node, view));
  view.element.addEventListener("pointerenter", read); // the linked text may have been edited elsewhere
  readers.add(read);
  chain(node, "onAdded", () => text.onRemove?.()); // because the host puts its element back
  chain(editor, "onRemove", () => readers.delete(read));
  chain(node, "onConfigure", () => (read(), setTimeout(() => bringHome(node, view.element))));
  chain(node, "onConnectionsChange", read);
  chain(node, "onResize", () => (node.size[0] = Math.max(node.size[0], MIN_WIDTH)));
  read();
  node.setSize(node.size.map((/** @type {number} */ length, /** @type {number} */ i) => Math.max(length, MIN_SIZE[i])));
}

/** Give the node of a subgraph an editor for each script that was promoted to it. */
function showPromoted(/** @type {any} */ node) {
  const replace = () => {
    for (const input of node.inputs) {
      const plain = input._widget; // the host draws nothing for this type
      if (plain?.type !== EDITOR || plain.element || !plain.widgetId) continue; // older hosts show the editor inside
      const view = new TimelineView();
      view.value = plain.value ?? "";
      node.addCustomWidget = (/** @type {any} */ widget) => widget; // the widgets of a subgraph follow from its inputs
      const editor = addEditor(node, input.name, view);
      delete node.addCustomWidget;
      Object.defineProperty(editor, "widgetId", { value: plain.widgetId, configurable: true });
      const write = () => ((plain.value = view.value), readers.forEach((read) => read()));
      view.addEventListener("change", write);
      view.element.addEventListener("pointerenter", () => (view.value = plain.value)); // the side panel edits it too
      chain(editor.options, "setValue", write);
      input._widget = editor;
      readers.forEach((read) => read());
      setTimeout(() => bringHome(node, view.element));
    }
  };
  node.subgraph.events.addEventListener("widget-promoted", replace);
}

/** Add an editor to a node as the widget whose value is the script. */
function addEditor(/** @type {any} */ node, /** @type {string} */ name, /** @type {TimelineView} */ view) {
  addStyle();
  view.element.dataset.captureWheel = "true"; // Nodes 2.0 asks here
  for (const type of KEPT_EVENTS) view.element.addEventListener(type, shareWithCanvas);
  const editor = node.addDOMWidget(name, EDITOR, view.element, {
    getMinHeight: () => view.minHeight,
    getValue: () => view.value,
    setValue: (/** @type {string} */ script) => ((view.value = script ?? ""), keep()),
  });
  const keep = () => editor._state && (editor._state.value = view.value); // ComfyUI 0.24 promotes this value
  Object.defineProperty(editor, "width", { get: () => undefined, set() {} }); // the side panel would narrow it
  for (const name of ["computedDisabled", "connectionSuppressed"]) {
    Object.defineProperty(editor, name, { get: () => false, set() {} }); // the host would hide it when it is linked
  }
  view.addEventListener("change", () => {
    keep();
    editor.callback?.(view.value);
    if (!view.problem) clearErrors(node);
  });
  view.addEventListener("changed", rememberForUndo);
  for (const way of ["Undo", "Redo"]) {
    view.addEventListener(way.toLowerCase(), () => app.extensionManager.command.execute(`Comfy.${way}`));
  }
  chain(editor, "onRemove", () => {
    homes.set(String(node.id), view.element.parentElement);
    view.dispose();
  });
  return editor;
}

/** Show the linked text instead of the script, which is not used then. */
function lock(/** @type {any} */ node, /** @type {TimelineView} */ view) {
  const slot = node.inputs?.findIndex((/** @type {any} */ input) => input.widget?.name === "script") ?? -1;
  const isLinked = node.graph && slot >= 0 && node.isInputConnected(slot);
  const origin = isLinked ? node.getInputNode(slot) : null;
  const promoted = isLinked && !origin ? findPromoted(node.graph, view) : null;
  if (origin) {
    const text = origin.widgets?.find((/** @type {any} */ widget) => typeof widget.value === "string");
    view.lock(`The script comes from ${origin.title}.`, text?.value);
  } else {
    view.lock(promoted ? "The script is set on the subgraph's node." : "", promoted?.value);
  }
}

/** Find the editor on the node of a subgraph, unless it is the one inside, which older hosts show there. */
function findPromoted(/** @type {any} */ graph, /** @type {TimelineView} */ view) {
  const root = graph.rootGraph;
  const graphs = root ? [root, ...root.subgraphs.values()] : [];
  const hosts = graphs.flatMap((each) => each.nodes).filter((/** @type {any} */ node) => node.subgraph === graph);
  const isEditor = (/** @type {any} */ { type, element }) => type === EDITOR && element && element !== view.element;
  return hosts.flatMap((/** @type {any} */ node) => node.widgets ?? []).find(isEditor);
}

/** Clear the red frame of a rejected script: the host does so for its own widgets, and not for every kind of error. */
function clearErrors(/** @type {any} */ node) {
  const errors = app.extensionManager?.lastNodeErrors ?? {};
  for (const [id, { class_type: type }] of Object.entries(errors)) {
    if (type === "LongLiveTimeline" && id.split(":").includes(String(node.id))) delete errors[id];
  }
  node.setDirtyCanvas(true, true);
}

/** Put the editor back after an undo: that makes a new node, but Nodes 2.0 keeps the old page without the editor. */
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
  for (const type of KEPT_EVENTS) page.addEventListener(type, shareWithCanvas);
  const widget = node.addDOMWidget("report", "LONGLIVE_REPORT", page, { serialize: false, getValue: () => "" });
  widget.serialize = false;
  chain(node, "onExecuted", (/** @type {any} */ shown) => (page.textContent = shown?.text?.join("") ?? ""));
}

/** Read the frames per block of the session that this node continues, from the options before it. */
function readBlock(/** @type {any} */ node) {
  const passed = new Set(); // in case the graph is wired into a ring
  let source = findOrigin(node, "session");
  for (; findOrigin(source, "session") && !passed.has(source); source = findOrigin(source, "session")) {
    passed.add(source);
  }
  const options = findOrigin(source, "options");
  return options?.widgets?.find((/** @type {any} */ widget) => widget.name === "block")?.value ?? 3;
}

/** Find the node at the other end of an input, if there is one. */
function findOrigin(/** @type {any} */ node, /** @type {string} */ name) {
  if (!node?.graph) return null; // a copy that is not in a graph yet
  const slot = node.inputs?.findIndex((/** @type {any} */ input) => input.name === name) ?? -1;
  return slot < 0 ? null : node.getInputNode(slot);
}

/** Take a snapshot for undo: the host does so on mouse and key events, which the editor keeps to itself. */
function rememberForUndo() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

/** Keep typing, and the pointer and wheel events that the editor uses, from the host; pass on all others. */
function shareWithCanvas(/** @type {any} */ event) {
  const ofKeys = event.type.startsWith("key");
  if (ofKeys && !event.defaultPrevented && isShortcut(event)) return;
  if (event.type === "contextmenu" && !isField(event.target) && isVue()) return;
  if (!ofKeys && isForCanvas(event)) {
    event.preventDefault();
    app.canvas.canvas.dispatchEvent(new event.constructor(event.type, event));
  }
  event.stopPropagation();
}

/** Whether a key is a shortcut of the host: a function key, or one with a modifier that types nothing. */
function isShortcut(/** @type {KeyboardEvent} */ event) {
  const { key, code, ctrlKey, metaKey, altKey } = event;
  if (/^F\d+$/.test(key)) return true;
  const command = ctrlKey || metaKey;
  if (command && /^[zy]$/i.test(key)) return false; // typing is undone first
  const types = key.length === 1 && !code.endsWith(key.toUpperCase()); // Alt makes another letter
  return command ? !event.getModifierState("AltGraph") : altKey && !types;
}

/** Whether a pointer or wheel event is for the canvas: zooming, panning, its menu. */
function isForCanvas(/** @type {any} */ { type, target, currentTarget, button, buttons, ctrlKey, metaKey }) {
  if (type === "wheel") return ctrlKey || metaKey || !isScrolling(target, currentTarget);
  if (type === "pointermove") return (buttons & 4) !== 0;
  if (button === 2 || type === "contextmenu") return !isField(target) && !isVue();
  return button === 1;
}

/** Whether the wheel can scroll anything between an element and the editor around it. */
function isScrolling(/** @type {Element | null} */ element, /** @type {Element} */ editor) {
  for (; element && element !== editor.parentElement; element = element.parentElement) {
    const scrolls = !["visible", "hidden", "clip"].includes(getComputedStyle(element).overflowY);
    if (scrolls && element.scrollHeight > element.clientHeight + 1) return true;
  }
  return false;
}

/** Whether an element has its own menu. */
function isField(/** @type {Element} */ element) {
  return element.matches("input, textarea, select");
}

/** Whether Nodes 2.0 draws the nodes; its elements surround the editor. */
function isVue() {
  // @ts-ignore: a global of the host
  return Boolean(globalThis.LiteGraph?.vueNodesMode);
}

/** Give the sockets of sessions a color in both renderers; the host knows only its own types. */
function colorSessions() {
  document.documentElement.style.setProperty("--color-datatype-LONGLIVE_SESSION", SESSION_COLOR);
  app.canvas.default_connection_color_byType.LONGLIVE_SESSION = SESSION_COLOR;
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
