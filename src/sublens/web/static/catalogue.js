/** The table of all images: sorted, filtered, page by page. */

import { chip, oodTag } from "./bars.js";
import { painted } from "./colours.js";
import { choices, correct, correctionOf, whenCorrected } from "./corrections.js";
import { fillSelect, find, make } from "./dom.js";
import { many, percent, signed } from "./numbers.js";
import { claimedSet, oodFlag, setInBraces } from "./predictions.js";

const PAGE = 100;

/**
 * @typedef {import("./api.js").Plane} Plane
 * @typedef {import("./files.js").Job} Job
 * @typedef {import("./predictions.js").Network} Network
 * @typedef {{number: number, name: string, shape: number[]}} Extension  of a FITS file
 *
 * @typedef {object} Item  one image
 * @property {string} id
 * @property {string} key  of its correction
 * @property {Job} job  the file that it came from
 * @property {number | null} number  its place in the file, if that holds several
 * @property {number | null} ra
 * @property {number | null} dec
 * @property {string} error  why no network can use it, else ""
 * @property {Plane | null} counts
 * @property {boolean} hasNoise  whether `counts` is signal to noise
 * @property {Plane | null} thumb
 * @property {number | null} pixelScale  arcsec
 * @property {boolean} isScaleKnown
 * @property {Extension[]} extensions
 * @property {Record<string, import("./predictions.js").Prediction>} predictions  by network
 *
 * @typedef {object} Column
 * @property {string} name
 * @property {boolean} [isNumber]
 * @property {(item: Item) => string | number | null | undefined} value
 * @property {HTMLElement} [head]
 */

export class Catalogue {
  /** @type {Column[]} */
  columns = [];

  /** @param {{network: Network, whenSelected: (item: Item | null) => void}} options */
  constructor({ network, whenSelected }) {
    this.whenSelected = whenSelected;
    this.network = network;
    /** @type {Item[]} */
    this.items = [];
    /** @type {Item | null} */
    this.selected = null;
    this.isChosen = false;
    this.page = 0;
    /** @type {{column: string | null, isDescending: boolean}} column: its name */
    this.sort = { column: null, isDescending: false };
    /** @type {Map<Item, HTMLElement>} */
    this.rows = new Map();
    /** @type {number | null} */
    this.frame = null;
    this.filters = ["filter-text", "filter-label", "only-ood", "only-errors", "only-corrected"].map(find);
    for (const filter of this.filters) filter.addEventListener("input", () => this.turnTo(0));
    find("page-back").addEventListener("click", () => this.turnTo(this.page - 1));
    find("page-on").addEventListener("click", () => this.turnTo(this.page + 1));
    whenCorrected((key) => this.refreshCorrection(key));
    this.follow(network);
  }

  /** @returns {Column[]} */
  describeColumns() {
    const of = (/** @type {Item} */ item) => item.predictions[this.network.name];
    return [
      { name: "Image", value: (item) => item.id },
      { name: "Prediction", value: (item) => of(item)?.label },
      ...this.network.classes.map((label) => ({
        name: `P(${label})`,
        isNumber: true,
        value: (/** @type {Item} */ item) => of(item)?.probs[label],
      })),
      { name: "Set", value: (item) => claimedSet(of(item))?.join(", ") },
      { name: "OOD score", isNumber: true, value: (item) => of(item)?.ood_score },
      { name: "Correction", value: (item) => correctionOf(item.key).correction || null },
      { name: "Comment", value: (item) => correctionOf(item.key).comment || null },
    ];
  }

  makeHead() {
    for (const column of this.columns) {
      const button = make("button", { type: "button", text: column.name, onclick: () => this.sortBy(column) });
      column.head = make("th", { scope: "col", class: column.isNumber && "figure" }, button);
    }
    const thumbs = make("th", { scope: "col" }, make("span", { class: "unseen", text: "Picture" }));
    find("catalogue-head").replaceChildren(thumbs, ...this.columns.map(({ head }) => head));
  }

  /** @param {number} page */
  turnTo(page) {
    this.page = page;
    this.show();
  }

  /** @param {Column} column */
  sortBy({ name, isNumber }) {
    const isAgain = this.sort.column === name;
    this.sort = { column: name, isDescending: isAgain ? !this.sort.isDescending : Boolean(isNumber) };
    this.markSort();
    this.turnTo(0);
  }

  markSort() {
    for (const { name, head } of this.columns) {
      if (name !== this.sort.column) head?.removeAttribute("aria-sort");
      else head?.setAttribute("aria-sort", this.sort.isDescending ? "descending" : "ascending");
    }
  }

  /** Whether the filters let an image through. @param {Item} item */
  isListed(item) {
    const [text, label, ood, errors, corrected] = this.filters;
    const prediction = item.predictions[this.network.name];
    const { correction, comment } = correctionOf(item.key);
    const words = [item.id, item.error, comment, ...(prediction?.notes ?? [])].join(" ").toLowerCase();
    return (
      words.includes(text.value.trim().toLowerCase()) &&
      (!label.value || prediction?.label === label.value) &&
      (!ood.checked || oodFlag(prediction)) &&
      (!errors.checked || item.error) &&
      (!corrected.checked || correction)
    );
  }

  /** The images that the filters leave, in order; those without a value come last, either way. */
  get listed() {
    const items = this.items.filter((item) => this.isListed(item));
    const column = this.columns.find(({ name }) => name === this.sort.column);
    return column ? sorted(items, column, this.sort.isDescending) : items;
  }

  /** Shows what has changed at the next frame, however often it is asked until then. */
  showSoon() {
    this.frame ??= requestAnimationFrame(() => this.show());
  }

  show() {
    this.frame = null;
    const { listed } = this;
    const last = Math.max(0, Math.ceil(listed.length / PAGE) - 1);
    this.page = Math.min(Math.max(0, this.page), last);
    const items = listed.slice(this.page * PAGE, (this.page + 1) * PAGE);
    this.place(items.map((item) => this.row(item)));
    find("shown").textContent = `${many(listed.length)} of ${many(this.items.length)} shown`;
    find("pages").hidden = !last;
    find("page-text").textContent = `Page ${this.page + 1} of ${last + 1}`;
    [find("page-back").disabled, find("page-on").disabled] = [this.page === 0, this.page === last];
  }

  /** Rows go in only where they differ, and whoever is typing in one keeps the focus. @param {HTMLElement[]} rows */
  place(rows) {
    const body = find("catalogue-rows");
    if (rows.length === body.children.length && rows.every((row, i) => row === body.children[i])) return;
    const focused = /** @type {HTMLElement | null} */ (document.activeElement);
    const isHere = body.contains(focused);
    body.replaceChildren(...rows);
    if (isHere && focused?.isConnected) focused.focus({ preventScroll: true });
  }

  /** @param {Item} item */
  row(item) {
    const row = this.rows.get(item) ?? this.makeRow(item);
    this.rows.set(item, row);
    if (item === this.selected) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
    return row;
  }

  /** @param {Item} item */
  makeRow(item) {
    const row = make("tr", { "data-id": item.id, onclick: (/** @type {Event} */ event) => this.clicked(event, item) });
    const name = make("button", { type: "button", class: "name", text: item.id });
    row.append(make("td", {}, thumbnail(item)), make("th", { scope: "row" }, name), ...this.predictionCells(item));
    row.append(...correctionCells(item, this.network.classes));
    return row;
  }

  /** @param {Item} item */
  predictionCells(item) {
    const { name, classes } = this.network;
    const prediction = item.predictions[name];
    if (item.error || !prediction?.label) {
      const text = item.error || prediction?.error || "";
      return [make("td", { class: "wrong", colspan: classes.length + 3, text })];
    }
    const score = prediction.ood_score === null ? "–" : signed(prediction.ood_score, 2);
    return [
      make("td", {}, chip(prediction.label)),
      ...classes.map((label) => make("td", { class: "figure", text: percent(prediction.probs[label]) })),
      make("td", { text: setInBraces(prediction) }),
      make("td", { class: "figure" }, oodTag(prediction), ` ${score}`),
    ];
  }

  /** @param {Event} event @param {Item} item */
  clicked(event, item) {
    if (/** @type {Element} */ (event.target).closest("select, input")) return;
    this.isChosen = true; // by the person: what comes in later does not take its place
    this.select(item);
  }

  /** @param {Item | null} item */
  select(item) {
    if (this.selected) this.rows.get(this.selected)?.removeAttribute("aria-current");
    this.selected = item;
    if (item) this.rows.get(item)?.setAttribute("aria-current", "true");
    this.whenSelected(item);
  }

  /** Selects the first image that networks can use. */
  selectFirst() {
    const first = this.items.find((item) => !item.error);
    if (first && first !== this.selected) this.select(first);
  }

  /** Selects the next image in the order of the table, or with -1 the one before. @param {1 | -1} by */
  step(by) {
    this.isChosen = true;
    const { listed } = this;
    const at = this.selected ? listed.indexOf(this.selected) : -1;
    if (listed.length) this.select(listed[(at + by + listed.length) % listed.length]);
  }

  /** Adds the images of one file in the place of any that it had. @param {Job} job @param {Item[]} items */
  put(job, items) {
    const old = this.items.filter((item) => item.job === job);
    if (old.length) this.items = this.items.filter((item) => item.job !== job);
    const before = (/** @type {Item} */ item) => (item.job.order ?? 0) < (job.order ?? 0);
    this.items.splice(this.items.findLastIndex(before) + 1, 0, ...items); // files may be done out of order
    old.forEach((item) => this.rows.delete(item));
    if (!this.selected || old.includes(this.selected)) this.select(items[0] ?? null);
    else if (!this.isChosen) this.selectFirst();
    this.showSoon();
  }

  /** Shows the predictions of another network, which may have other classes. @param {Network} network */
  follow(network) {
    this.network = network;
    this.rows.clear();
    this.columns = this.describeColumns();
    this.makeHead();
    this.markSort();
    const labels = network.classes.map((label) => /** @type {const} */ ([label, label]));
    fillSelect(find("filter-label"), [["", "any"], ...labels]);
    this.show();
  }

  clear() {
    this.items = [];
    this.rows.clear();
    this.selected = null;
    this.isChosen = false;
    this.show();
  }

  /** @param {string} key */
  refreshCorrection(key) {
    for (const [item, row] of this.rows) {
      if (item.key !== key) continue;
      const { correction, comment } = correctionOf(key);
      /** @type {HTMLSelectElement} */ (row.querySelector("select")).value = correction;
      /** @type {HTMLInputElement} */ (row.querySelector("input")).value = comment;
    }
  }
}

/** @param {Item[]} items @param {Column} column @param {boolean} isDescending */
function sorted(items, { value, isNumber }, isDescending) {
  const isMissing = (/** @type {Item} */ item) => Number((value(item) ?? null) === null);
  const order = (/** @type {any} */ left, /** @type {any} */ right) =>
    isNumber ? left - right : left.localeCompare(right, "en", { numeric: true });
  return items.sort((a, b) => {
    if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
    return (isDescending ? -1 : 1) * order(value(a), value(b));
  });
}

/** @param {Item} item */
function thumbnail(item) {
  const canvas = make("canvas", { width: 40, height: 40, "aria-hidden": "true" });
  if (item.thumb) canvas.getContext("2d")?.drawImage(painted(item.thumb, [0, 255], "linear", "grey"), 0, 0, 40, 40);
  return canvas;
}

/** @param {Item} item @param {string[]} classes */
function correctionCells({ id, key }, classes) {
  const { correction, comment } = correctionOf(key);
  const choice = make("select", {
    "aria-label": `Correction of ${id}`,
    onchange: () => correct(key, { correction: choice.value }),
  });
  fillSelect(choice, choices(classes, correction));
  choice.value = correction;
  const words = make("input", {
    type: "text",
    autocomplete: "off",
    "aria-label": `Comment on ${id}`,
    onchange: () => correct(key, { comment: words.value }),
  });
  words.value = comment;
  return [make("td", {}, choice), make("td", {}, words)];
}
