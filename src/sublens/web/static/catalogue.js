/** The table of all images: sorted, filtered, page by page. */

import { chip, setInBraces } from "./answers.js";
import { painted } from "./colours.js";
import { find, make } from "./dom.js";
import { many, percent, signed } from "./numbers.js";
import { CORRECTIONS, keepOpinion, opinion, whenOpinionsChange } from "./opinions.js";

const PAGE = 100;

/**
 * @typedef {object} Item  one image
 * @property {string} id
 * @property {object} job  the file that it came from
 * @property {string} error  why it could not be judged, else ""
 * @property {Record<string, object>} predictions  by network
 * @property {import("./api.js").Plane} [thumb]
 */

export class Catalogue {
  /** @param {{classes: string[], whenSelected: (item: Item) => void}} options */
  constructor({ classes, whenSelected }) {
    Object.assign(this, { classes, whenSelected, network: "", items: [], selected: null, isChosen: false, page: 0 });
    this.sort = { column: null, isDescending: false };
    this.rows = new Map();
    this.columns = this.describeColumns();
    this.makeHead();
    this.makeFilters();
    whenOpinionsChange((id) => this.refreshOpinion(id));
  }

  describeColumns() {
    const of = (item) => item.predictions[this.network] ?? {};
    return [
      { name: "Image", value: (item) => item.id },
      { name: "Answer", value: (item) => of(item).label },
      ...this.classes.map((label) => ({
        name: `P(${label})`,
        isNumber: true,
        value: (item) => of(item).probs?.[label],
      })),
      { name: "Set", value: (item) => of(item).prediction_set?.join(", ") },
      { name: "Strangeness", isNumber: true, value: (item) => of(item).ood_score },
      { name: "Correction", value: (item) => opinion(item.id).correction || null },
      { name: "Comment", value: (item) => opinion(item.id).comment || null },
    ];
  }

  makeHead() {
    const heads = this.columns.map((column) => {
      const button = make("button", { type: "button", text: column.name, onclick: () => this.sortBy(column) });
      column.head = make("th", { scope: "col", class: column.isNumber && "figure" }, button);
      return column.head;
    });
    const thumbs = make("th", { scope: "col" }, make("span", { class: "unseen", text: "Picture" }));
    find("catalogue-head").replaceChildren(thumbs, ...heads);
  }

  makeFilters() {
    const labels = [["", "any"], ...this.classes.map((label) => [label, label])];
    find("filter-label").replaceChildren(...labels.map(([value, text]) => make("option", { value, text })));
    this.filters = ["filter-text", "filter-label", "only-strange", "only-errors", "only-corrected"].map(find);
    for (const filter of this.filters) filter.addEventListener("input", () => this.turnTo(0));
    find("page-back").addEventListener("click", () => this.turnTo(this.page - 1));
    find("page-on").addEventListener("click", () => this.turnTo(this.page + 1));
  }

  turnTo(page) {
    this.page = page;
    this.show();
  }

  sortBy(column) {
    const isAgain = this.sort.column === column;
    this.sort = { column, isDescending: isAgain ? !this.sort.isDescending : Boolean(column.isNumber) };
    for (const other of this.columns) other.head.removeAttribute("aria-sort");
    column.head.setAttribute("aria-sort", this.sort.isDescending ? "descending" : "ascending");
    this.turnTo(0);
  }

  isWanted(item) {
    const [text, label, strange, errors, corrected] = this.filters;
    const judgement = item.predictions[this.network];
    const words = [item.id, item.error, opinion(item.id).comment, ...(judgement?.notes ?? [])].join(" ").toLowerCase();
    return (
      words.includes(text.value.trim().toLowerCase()) &&
      (!label.value || judgement?.label === label.value) &&
      (!strange.checked || judgement?.ood) &&
      (!errors.checked || item.error) &&
      (!corrected.checked || opinion(item.id).correction)
    );
  }

  /** The images that the filters leave, in order; those without a value come last, either way. */
  get wanted() {
    const chosen = this.items.filter((item) => this.isWanted(item));
    const { column, isDescending } = this.sort;
    if (!column) return chosen;
    const isMissing = (value) => value === undefined || value === null;
    return chosen.sort((a, b) => {
      const [left, right] = [column.value(a), column.value(b)];
      if (isMissing(left) || isMissing(right)) return isMissing(left) - isMissing(right);
      const order = column.isNumber ? left - right : left.localeCompare(right, "en", { numeric: true });
      return isDescending ? -order : order;
    });
  }

  /** Shows what has changed at the next frame, however often it is asked until then. */
  showSoon() {
    this.frame ??= requestAnimationFrame(() => this.show());
  }

  show() {
    this.frame = null;
    const wanted = this.wanted;
    const last = Math.max(0, Math.ceil(wanted.length / PAGE) - 1);
    this.page = Math.min(Math.max(0, this.page), last);
    const shown = wanted.slice(this.page * PAGE, (this.page + 1) * PAGE);
    this.place(shown.map((item) => this.row(item)));
    find("shown").textContent = `${many(wanted.length)} of ${many(this.items.length)} shown`;
    find("pages").hidden = !last;
    find("page-text").textContent = `Page ${this.page + 1} of ${last + 1}`;
    [find("page-back").disabled, find("page-on").disabled] = [this.page === 0, this.page === last];
  }

  /** Rows go in only where they differ, and whoever is typing in one keeps the focus. */
  place(rows) {
    const body = find("catalogue-rows");
    if (rows.length === body.children.length && rows.every((row, i) => row === body.children[i])) return;
    const focused = body.contains(document.activeElement) ? document.activeElement : null;
    body.replaceChildren(...rows);
    if (focused?.isConnected) focused.focus({ preventScroll: true });
  }

  row(item) {
    if (!this.rows.has(item)) this.rows.set(item, this.makeRow(item));
    const row = this.rows.get(item);
    if (item === this.selected) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
    return row;
  }

  makeRow(item) {
    const row = make("tr", { "data-id": item.id, onclick: (event) => this.clicked(event, item) });
    const name = make("button", { type: "button", class: "name", text: item.id });
    row.append(make("td", {}, thumbnail(item)), make("th", { scope: "row" }, name));
    if (item.error) row.append(make("td", { class: "wrong", colspan: this.classes.length + 3, text: item.error }));
    else row.append(...this.answerCells(item));
    row.append(...opinionCells(item));
    return row;
  }

  answerCells(item) {
    const judgement = item.predictions[this.network];
    if (!judgement?.label)
      return [make("td", { class: "wrong", colspan: this.classes.length + 3, text: judgement?.error ?? "" })];
    const strangeness = judgement.ood_score === null ? "–" : signed(judgement.ood_score, 2);
    return [
      make("td", {}, chip(judgement.label)),
      ...this.classes.map((label) => make("td", { class: "figure", text: percent(judgement.probs[label]) })),
      make("td", { text: setInBraces(judgement.prediction_set) }),
      make(
        "td",
        { class: "figure" },
        judgement.ood ? make("span", { class: "warning-tag", text: "strange" }) : "",
        ` ${strangeness}`,
      ),
    ];
  }

  clicked(event, item) {
    if (event.target.closest("select, input")) return;
    this.isChosen = true; // by the person: what comes in later does not take its place
    this.select(item);
  }

  select(item) {
    const before = this.rows.get(this.selected);
    before?.removeAttribute("aria-current");
    this.selected = item;
    this.rows.get(item)?.setAttribute("aria-current", "true");
    this.whenSelected(item);
  }

  /** Selects the first image that could be judged. */
  selectFirst() {
    const first = this.items.find((item) => !item.error);
    if (first && first !== this.selected) this.select(first);
  }

  /** Selects the next image in the order of the table, or with -1 the one before. */
  step(by) {
    this.isChosen = true;
    const wanted = this.wanted;
    const at = wanted.indexOf(this.selected);
    if (wanted.length) this.select(wanted[(at + by + wanted.length) % wanted.length]);
  }

  /** Adds the images of one file in the place of any that it had. */
  put(job, items) {
    const old = this.items.filter((item) => item.job === job);
    if (old.length) this.items = this.items.filter((item) => item.job !== job);
    const after = this.items.findLastIndex((item) => item.job.order < job.order); // files may be done out of order
    this.items.splice(after + 1, 0, ...items);
    old.forEach((item) => this.rows.delete(item));
    if (!this.selected || old.includes(this.selected)) this.select(items[0] ?? null);
    else if (!this.isChosen) this.selectFirst();
    this.showSoon();
  }

  follow(network) {
    this.network = network;
    this.rows.clear();
    this.show();
  }

  clear() {
    this.items = [];
    this.rows.clear();
    this.selected = null;
    this.isChosen = false;
    this.show();
  }

  refreshOpinion(id) {
    for (const [item, row] of this.rows) {
      if (item.id !== id) continue;
      row.querySelector("select").value = opinion(id).correction;
      row.querySelector("input").value = opinion(id).comment;
    }
  }
}

function thumbnail(item) {
  const canvas = make("canvas", { width: 40, height: 40, "aria-hidden": "true" });
  if (item.thumb) canvas.getContext("2d").drawImage(painted(item.thumb, [0, 255], "linear", "grey"), 0, 0, 40, 40);
  return canvas;
}

function opinionCells(item) {
  const { correction, comment } = opinion(item.id);
  const choice = make("select", {
    "aria-label": `Correction of ${item.id}`,
    onchange: (event) => keepOpinion(item.id, { correction: event.target.value }),
  });
  choice.append(...CORRECTIONS.map(([value, text]) => make("option", { value, text })));
  choice.value = correction;
  const words = make("input", {
    type: "text",
    autocomplete: "off",
    "aria-label": `Comment on ${item.id}`,
    onchange: (event) => keepOpinion(item.id, { comment: event.target.value }),
  });
  words.value = comment;
  return [make("td", {}, choice), make("td", {}, words)];
}

/** An image's row of the catalogue, as the service takes it. */
export function record(item, network) {
  const judgement = item.predictions[network] ?? {};
  return {
    id: item.id,
    path: item.job.path,
    label: judgement.label ?? "",
    probs: judgement.probs ?? {},
    prediction_set: judgement.prediction_set ?? null,
    ood_score: judgement.ood_score ?? null,
    ood: judgement.ood ?? false,
    notes: judgement.notes ?? [],
    error: item.error || judgement.error || "",
    ra: item.ra ?? null,
    dec: item.dec ?? null,
    ...opinion(item.id),
  };
}
