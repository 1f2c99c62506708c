/** Corrections and comments of the person, by image, kept until the tab is closed. */

const STORAGE_KEY = "sublens-corrections";
const UNSURE = "unsure";

/** @typedef {{correction: string, comment: string}} Correction  the right class and any comment, each "" without one */

/** @type {Correction} */
const NONE = { correction: "", comment: "" };

/** @type {((key: string) => void)[]} */
const listeners = [];

/** @type {Record<string, Correction>} */
let corrections = {};
try {
  corrections = JSON.parse(sessionStorage.getItem(STORAGE_KEY) ?? "{}");
} catch {
  // A browser that keeps nothing, or a damaged entry: begin anew.
}

/**
 * The key of an image's correction. Another file of the same name is another image, and so is another extension.
 * @param {string} id
 * @param {{size: number, lastModified: number}} file
 * @param {number | undefined} hdu
 */
export const keyOf = (id, { size, lastModified }, hdu) => JSON.stringify([id, size, lastModified, hdu ?? null]);

/**
 * What a correction can be, as values and texts: a network's classes, or what was chosen beside another network.
 * @param {string[]} classes
 * @returns {[string, string][]}
 */
export function choices(classes, current = "") {
  const values = new Set([...classes, UNSURE, current]);
  values.delete("");
  return [["", "none"], ...[...values].map((value) => /** @type {[string, string]} */ ([value, value]))];
}

/** @param {string} key of an image @returns {Correction} */
export const correctionOf = (key) => corrections[key] ?? NONE;

/** @param {(key: string) => void} listener */
export const whenCorrected = (listener) => listeners.push(listener);

/** @param {string} key @param {Partial<Correction>} change */
export function correct(key, change) {
  corrections[key] = { ...correctionOf(key), ...change };
  store();
  listeners.forEach((listener) => listener(key));
}

/** Forgets the corrections of images that are removed. @param {string[]} keys */
export function forget(keys) {
  for (const key of keys) delete corrections[key];
  store();
}

function store() {
  try {
    sessionStorage.setItem(STORAGE_KEY, JSON.stringify(corrections));
  } catch {
    // Too many, or nothing is kept: they stay for as long as the page does.
  }
}
