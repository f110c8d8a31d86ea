// @ts-check
/** The panel of LongLive Live on its node. It takes the place of the widgets `script` and `take`, which it writes. */
import { FilmFeed } from "../film/feed.js";
import { FilmPlayer } from "../film/player.js";
import { LivePanel } from "../live/panel.js";
import { keepEvents } from "./canvas.js";
import { findNode } from "./films.js";
import { addStyle, chain, findOrigin, rememberForUndo } from "./nodes.js";

const MIN_SIZE = [460, 640]; // of a new node
const MIN_WIDTH = 360; // of a node, so that the buttons fit
const NOTE = "$$node-text-preview"; // the host's widget for text below a node; the panel says it, and keeps its room
const ADOPTION = 20_000; // ms in which a node that is made anew finds the panel of the one before; a slow page needs seconds

/** @type {Set<LivePanel>} */
const panels = new Set();
/** @type {WeakMap<object, (film: string) => void>} by node */
const watchers = new WeakMap();
/** @type {Map<string, {panel: LivePanel, home: HTMLElement | null}>} panels of removed nodes, by their take */
const orphans = new Map();

/** Hand what the host says of runs to their panels. @param {any} app @param {any} api of the host */
export function listenToRuns(app, api) {
  const tell = (/** @type {(panel: LivePanel) => void} */ say) => panels.forEach(say);
  api.addEventListener("longlive.live", (/** @type {any} */ { detail }) => tell((panel) => panel.run.notice(detail)));
  api.addEventListener("longlive.film", (/** @type {any} */ { detail }) => {
    tell((panel) => panel.noticeFilm(detail));
    watchers.get(findNode(app, detail.node))?.(detail.id);
  });
  api.addEventListener("reconnected", () => tell((panel) => panel.refresh()));
  api.addEventListener("status", (/** @type {any} */ { detail }) => {
    if (detail?.exec_info?.queue_remaining === 0) tell((panel) => panel.settle("The host ended before the film began."));
  });
}

/** Show the panel of a directed run on a node. Without the two widgets the node is left alone. */
export function showLive(/** @type {any} */ app, /** @type {any} */ api, /** @type {any} */ node) {
  const [script, take] = ["script", "take"].map((name) => node.widgets?.find((/** @type {any} */ each) => each.name === name));
  if (!script || !take || !node.addDOMWidget) return;
  addStyle("panel.css");
  addStyle("../film/film.css");
  addStyle("../live/live.css");
  for (const widget of [script, take]) hide(widget);
  let bond = new AbortController();
  let panel = makePanel(app, api);
  const widget = node.addDOMWidget("live", "LONGLIVE_LIVE", panel.element, {
    serialize: false,
    hideOnZoom: false,
    getValue: () => "",
    getMinHeight: () => panel.minHeight,
  });
  widget.serialize = false;
  Object.defineProperty(widget, "width", { get: () => undefined, set() {} }); // the side panel would narrow it

  const bind = () => {
    const options = { signal: bond.signal };
    panel.addEventListener("change", () => ([take.value, script.value] = [panel.take, panel.script]), options);
    panel.addEventListener("changed", () => rememberForUndo(app), options);
    panel.addEventListener("start", () => queue(app, panel), options);
    panel.run.addEventListener("state", () => (panel.note = readNote(node)), options);
    panels.add(panel);
  };
  const read = () => {
    const origin = findOrigin(node, "script");
    panel.lock(origin ? `The script comes from ${origin.title}.` : "");
    panel.script = script.value ?? "";
    panel.take = take.value ?? "";
  };
  const adopt = () => {
    const orphan = orphans.get(take.value);
    if (!orphan) return;
    orphans.delete(take.value);
    bond.abort();
    panels.delete(panel);
    panel.dispose();
    bond = new AbortController();
    panel = orphan.panel;
    widget.element = panel.element;
    bind();
    setTimeout(() => {
      if (!panel.element.isConnected && orphan.home?.isConnected) orphan.home.replaceChildren(panel.element);
      panel.stage.resume();
    });
  };
  chain(node, "addCustomWidget", (/** @type {any} */ added) => added.name === NOTE && hide(added));
  watchers.set(node, (film) => panel.watch(film));
  chain(node, "onExecuted", (/** @type {any} */ shown) => shown?.longlive_film && panel.watch(shown.longlive_film[0]));
  const open = () => node.graph && (adopt(), read()); // a copy that is not in a graph has no page
  chain(node, "onConfigure", open);
  chain(node, "onAdded", open);
  chain(node, "onConnectionsChange", read);
  chain(script, "callback", () => (panel.script = script.value ?? ""));
  chain(node, "onResize", () => (node.size[0] = Math.max(node.size[0], MIN_WIDTH)));
  chain(widget, "onRemove", () => {
    bond.abort();
    panels.delete(panel);
    keep(panel);
  });
  bind();
  node.setSize(node.size.map((/** @type {number} */ length, /** @type {number} */ i) => Math.max(length, MIN_SIZE[i])));
}

function makePanel(/** @type {any} */ app, /** @type {any} */ api) {
  const fetch = (/** @type {string} */ path, /** @type {object} */ options = {}) => api.fetchApi(path, options);
  const panel = new LivePanel(fetch, (take, options) => {
    const player = new FilmPlayer(fetch, (path) => api.apiURL(path), take, options);
    return { player, feed: new FilmFeed(fetch, take) };
  });
  keepEvents(app, panel.element);
  panel.element.addEventListener("keydown", (event) => takeUndoKey(app, event));
  return panel;
}

/** Queue the graph; if the host refuses it, its own message says why. */
async function queue(/** @type {any} */ app, /** @type {LivePanel} */ panel) {
  const isQueued = await app.queuePrompt(0).catch(() => false);
  if (isQueued === false) panel.settle("The host refused the graph.");
}

/** Keep the panel of a removed node for a moment: an undo or another workflow's tab makes the node anew. */
function keep(/** @type {LivePanel} */ panel) {
  const home = panel.element.parentElement;
  if (!panel.take) return panel.dispose();
  orphans.set(panel.take, { panel, home });
  setTimeout(() => {
    if (orphans.get(panel.take)?.panel !== panel) return;
    orphans.delete(panel.take);
    panel.dispose();
  }, ADOPTION);
}

/** Leave the undo of typing to the field, and all other to the host, which does not see the key. */
function takeUndoKey(/** @type {any} */ app, /** @type {KeyboardEvent} */ event) {
  const key = event.key.toLowerCase();
  const field = /** @type {HTMLInputElement} */ (event.target);
  if (!(event.ctrlKey || event.metaKey) || event.altKey || (key !== "z" && key !== "y") || field.value) return;
  event.preventDefault();
  app.extensionManager.command.execute(key === "y" || event.shiftKey ? "Comfy.Redo" : "Comfy.Undo");
}

/** Read what a node has last been said to do, such as which words its text encoder understood. */
function readNote(/** @type {any} */ node) {
  const text = node.widgets?.find((/** @type {any} */ { name }) => name === NOTE)?.value ?? "";
  return String(text).trim().split("\n").at(-1) ?? "";
}

function hide(/** @type {any} */ widget) {
  widget.hidden = true;
  widget.options.hidden = true; // Nodes 2.0 asks here
}
