/** What the person thinks of each image: a correction and a comment, kept until the tab is closed. */

const KEPT = "sublens-opinions";

export const CORRECTIONS = [
  ["", "none"],
  ["no", "no"],
  ["sphere", "sphere"],
  ["vort", "vort"],
  ["unsure", "unsure"],
];

const NONE = { correction: "", comment: "" };
const listeners = [];
let opinions = {};
try {
  opinions = JSON.parse(sessionStorage.getItem(KEPT) ?? "{}");
} catch {
  // A browser that keeps nothing, or a damaged note: begin anew.
}

/** @param {string} id of an image */
export const opinion = (id) => opinions[id] ?? NONE;

/** @param {(id: string) => void} listener */
export const whenOpinionsChange = (listener) => listeners.push(listener);

/** @param {{correction?: string, comment?: string}} change */
export function keepOpinion(id, change) {
  opinions[id] = { ...opinion(id), ...change };
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(opinions));
  } catch {
    // Too many, or nothing is kept: they stay for as long as the page does.
  }
  listeners.forEach((listener) => listener(id));
}
