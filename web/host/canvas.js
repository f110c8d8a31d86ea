// @ts-check
/** Which events an element of the pack shares with the canvas of ComfyUI around it. */

const KEPT_EVENTS = "pointerdown pointermove pointerup mousedown dblclick contextmenu wheel keydown keyup".split(" ");

/** Keep the events that an element uses from the host's `app`. @param {any} app @param {HTMLElement} element */
export function keepEvents(app, element) {
  element.dataset.captureWheel = "true"; // Nodes 2.0 asks here
  for (const type of KEPT_EVENTS) element.addEventListener(type, (event) => shareWithCanvas(app, event));
}

/** Keep typing, and the pointer and wheel events that the editor uses, from the host; pass on all others. */
function shareWithCanvas(/** @type {any} */ app, /** @type {any} */ event) {
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
