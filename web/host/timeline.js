// @ts-check
/** The editor of LongLive Timeline on its node, and on the node of a subgraph that its script was promoted to. */
import { TimelineView } from "../timeline/view.js";
import { keepEvents } from "./canvas.js";
import { addStyle, bringHome, chain, findOrigin, rememberForUndo, rememberHome } from "./nodes.js";

const EDITOR = "LONGLIVE_TIMELINE"; // type of the editor's widget
const MIN_SIZE = [400, 330]; // of a new node
const MIN_WIDTH = 300; // of a node, so that the totals fit
/** @type {Set<() => void>} called when the text linked into a script may have changed */
const readers = new Set();

/** Put an editor in the place of the widget `script`, under its name. Without that widget the node is left alone. */
export function showTimeline(/** @type {any} */ app, /** @type {any} */ node) {
  const text = node.widgets?.find((/** @type {any} */ widget) => widget.name === "script");
  if (!text || !node.addDOMWidget) return;
  const view = new TimelineView();
  view.value = text.value ?? "";
  const place = node.widgets.indexOf(text);
  node.widgets.splice(place, 1);
  const editor = addEditor(app, node, "script", view);
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
export function showPromoted(/** @type {any} */ app, /** @type {any} */ node) {
  const replace = () => {
    for (const input of node.inputs) {
      const plain = input._widget; // the host draws nothing for this type
      if (plain?.type !== EDITOR || plain.element || !plain.widgetId) continue; // older hosts show the editor inside
      const view = new TimelineView();
      view.value = plain.value ?? "";
      node.addCustomWidget = (/** @type {any} */ widget) => widget; // the widgets of a subgraph follow from its inputs
      const editor = addEditor(app, node, input.name, view);
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
function addEditor(/** @type {any} */ app, /** @type {any} */ node, /** @type {string} */ name, /** @type {TimelineView} */ view) {
  addStyle("panel.css");
  addStyle("../timeline/timeline.css");
  keepEvents(app, view.element);
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
    if (!view.problem) clearErrors(app, node);
  });
  view.addEventListener("changed", () => rememberForUndo(app));
  for (const way of ["Undo", "Redo"]) {
    view.addEventListener(way.toLowerCase(), () => app.extensionManager.command.execute(`Comfy.${way}`));
  }
  chain(editor, "onRemove", () => {
    rememberHome(node, view.element);
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
function clearErrors(/** @type {any} */ app, /** @type {any} */ node) {
  const errors = app.extensionManager?.lastNodeErrors ?? {};
  for (const [id, { class_type: type }] of Object.entries(errors)) {
    if (type === "LongLiveTimeline" && id.split(":").includes(String(node.id))) delete errors[id];
  }
  node.setDirtyCanvas(true, true);
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
