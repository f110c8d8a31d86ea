// @ts-check
/** Small helpers for the elements of a page. */

/** Make an element with these properties. @template {keyof HTMLElementTagNameMap} Tag @param {Tag} tag @param {object} properties */
export function make(tag, properties) {
  const element = document.createElement(tag);
  Object.assign(element, properties);
  return element;
}

/** Find the height of an element's middle on the screen. @param {Element | null} element @param {number} otherwise */
export function findMiddle(element, otherwise) {
  const box = element?.getBoundingClientRect();
  return box ? box.top + box.height / 2 : otherwise;
}
