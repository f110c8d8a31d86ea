// @ts-check
/** What every page on a node of ComfyUI needs. */

/** @type {Map<string, HTMLElement | null>} where Nodes 2.0 put the page of a node, which it does only once */
const homes = new Map();

/** Remember where the page of a node is, when its widget is removed. */
export function rememberHome(/** @type {any} */ node, /** @type {HTMLElement} */ element) {
  homes.set(String(node.id), element.parentElement);
}

/** Put a page back after an undo: that makes a new node, but Nodes 2.0 keeps the old element without it. */
export function bringHome(/** @type {any} */ node, /** @type {HTMLElement} */ element) {
  const home = homes.get(String(node.id));
  homes.delete(String(node.id));
  if (!element.isConnected && home?.isConnected) home.replaceChildren(element);
}

/** Take a snapshot for undo: the host does so on mouse and key events, which our pages keep to themselves. */
export function rememberForUndo(/** @type {any} */ app) {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

/** Add a style sheet to the page, once. @param {string} name relative to this file */
export function addStyle(name) {
  const href = new URL(name, import.meta.url).href;
  if (document.querySelector(`link[href="${href}"]`)) return;
  document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href }));
}

/** Run `after` behind whatever `target[name]` already does, keeping its result. */
export function chain(/** @type {any} */ target, /** @type {string} */ name, /** @type {(...args: any[]) => void} */ after) {
  const before = target[name];
  target[name] = function (/** @type {any[]} */ ...args) {
    const result = before?.apply(this, args);
    after(...args);
    return result;
  };
}

/** Find the node at the other end of an input, if there is one. */
export function findOrigin(/** @type {any} */ node, /** @type {string} */ name) {
  if (!node?.graph) return null; // a copy that is not in a graph yet
  const slot = node.inputs?.findIndex((/** @type {any} */ input) => input.name === name) ?? -1;
  return slot < 0 ? null : node.getInputNode(slot);
}
