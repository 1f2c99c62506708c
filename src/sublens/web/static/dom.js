/** Elements: finding them, making them, and saying things aloud. */

/**
 * The element of an id. Its kind is not declared: it is whatever the page has under that id.
 * @param {string} id
 * @returns {any}
 */
export const find = (id) => document.getElementById(id);

/**
 * An element with attributes and children. `on...` attributes that are functions become listeners, `text` its text.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, unknown>} [attributes]
 * @param {...(Node | string)} children
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), /** @type {EventListener} */ (value));
    else if (name === "text") element.textContent = String(value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children);
  return element;
}

/**
 * Fills a select; what was chosen stays chosen where it still exists.
 * @param {HTMLSelectElement} select
 * @param {(readonly [string | number, string])[]} options values and texts
 */
export function fillSelect(select, options) {
  const chosen = select.value;
  select.replaceChildren(...options.map(([value, text]) => make("option", { value, text })));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}

/** @type {ReturnType<typeof setTimeout> | undefined} */
let speaking;

/** Says a short sentence to a screen reader once things are calm; the latest replaces any before it. @param {string} sentence */
export function say(sentence) {
  clearTimeout(speaking);
  speaking = setTimeout(() => (find("said").textContent = sentence), 400);
}

/**
 * Shows what went wrong in `box`, or clears it.
 * @param {HTMLElement} box
 * @param {any} error a `Problem`, or any object with a `message`, and perhaps `need` and `next`
 */
export function complain(box, error) {
  box.hidden = !error;
  if (!error) return box.replaceChildren();
  const parts = [error.need && `Needed: ${error.need}`, error.next].filter(Boolean);
  box.replaceChildren(
    make("strong", { text: error.message }),
    ...parts.flatMap((text) => [" ", make("span", { text })]),
  );
}

/** Starts a download of `blob`. @param {Blob} blob @param {string} name */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
