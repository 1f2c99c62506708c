/** The masses of a scene as a table and forms: all that the pictures do by pointer, by keyboard. */

import { find, make } from "./dom.js";
import { mass, plain, typed } from "./numbers.js";
import { LEAST_MSUN, MOST_MSUN, rounded } from "./scene.js";

const STRING_FIELDS = [
  ["x", "x, arcsec"],
  ["y", "y, arcsec"],
  ["angle", "Angle, °"],
  ["half_length", "Half length, arcsec"],
  ["mass_msun", "Mass, M☉"],
];
const NEW_STRING = { x: 0.5, y: 0.5, angle: 0.5, half_length: 1, mass_msun: 4e10 };
const DEGREES = 180 / Math.PI;

/** What a number field shows of a mass or a string. @param {string} name @param {number} value */
function fieldText(name, value) {
  if (name === "mass_msun") return typed(value);
  return plain(name === "angle" ? value * DEGREES : value, 3);
}

/**
 * @typedef {import("./scene.js").Subhalo} Subhalo
 * @typedef {number | "string"} Which  a subhalo by its number, or the string
 */

export class Masses {
  /** @param {import("./explore.js").Desk} desk */
  constructor(desk) {
    this.desk = desk;
    /** @type {{row: HTMLElement, choose: HTMLElement, inputs: Record<string, HTMLInputElement>}[]} */
    this.rows = [];
    find("add-form").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      const [x, y, msun] = ["add-x", "add-y", "add-mass"].map((id) => Number(find(id).value));
      desk.add({ x: rounded(x), y: rounded(y), mass_msun: rounded(msun) });
    });
    find("remove-all").addEventListener("click", () => desk.removeAll());
    this.controls = this.makeString();
  }

  makeString() {
    const fields = STRING_FIELDS.map(([name, text]) => {
      const input = make("input", {
        type: "number",
        step: "any",
        id: `string-${name}`,
        onchange: () => this.editString(name),
      });
      return make("div", { class: "field narrow" }, make("label", { for: input.id, text }), input);
    });
    const choose = make("button", { type: "button", text: "Choose", onclick: () => this.desk.choose("string") });
    const remove = make("button", { type: "button", text: "Remove string", onclick: () => this.desk.remove("string") });
    const add = make("button", {
      type: "button",
      id: "add-string",
      text: "Add a string",
      onclick: () => this.desk.setString({ ...NEW_STRING }),
    });
    find("string-controls").replaceChildren(...fields, choose, remove, add);
    return { fields, choose, remove, add };
  }

  /** @param {string} name */
  editString(name) {
    const value = Number(find(`string-${name}`).value);
    this.desk.scene.string[name] = rounded(name === "angle" ? value / DEGREES : value);
    this.desk.edited();
  }

  /** Brings the tables up to the scene; rows are made anew only where their number has changed. */
  show() {
    const { scene } = this.desk;
    if (scene.subhaloes.length !== this.rows.length) this.makeRows();
    scene.subhaloes.forEach((/** @type {Subhalo} */ subhalo, /** @type {number} */ number) =>
      this.showRow(subhalo, number),
    );
    this.showString();
    const total = scene.subhaloes.reduce(
      (/** @type {number} */ sum, /** @type {Subhalo} */ subhalo) => sum + subhalo.mass_msun,
      scene.string?.mass_msun ?? 0,
    );
    const n = scene.subhaloes.length;
    const words = [n && `${n} subhalo${n > 1 ? "es" : ""}`, scene.string && "a string"].filter(Boolean).join(" and ");
    find("mass-words").textContent = words ? `${words}, ${mass(total)} M☉ in all` : "None: the lens is smooth";
    find("mass-scroll").hidden = !n;
    find("remove-all").disabled = !words;
  }

  makeRows() {
    this.rows = this.desk.scene.subhaloes.map((/** @type {Subhalo} */ _, /** @type {number} */ number) => {
      const choose = make("button", {
        type: "button",
        text: String(number + 1),
        "aria-label": `Choose subhalo ${number + 1}`,
        onclick: () => this.desk.choose(number),
      });
      const inputs = {
        x: this.input(number, "x"),
        y: this.input(number, "y"),
        mass_msun: this.input(number, "mass_msun"),
      };
      const remove = make("button", {
        type: "button",
        text: "Remove",
        "aria-label": `Remove subhalo ${number + 1}`,
        onclick: () => this.desk.remove(number),
      });
      const cells = [choose, ...Object.values(inputs), remove].map((control) => make("td", {}, control));
      return { row: make("tr", {}, ...cells), choose, inputs };
    });
    find("mass-rows").replaceChildren(...this.rows.map(({ row }) => row));
  }

  /** @param {number} number @param {"x" | "y" | "mass_msun"} name */
  input(number, name) {
    const words = { x: "x", y: "y", mass_msun: "mass" }[name];
    const bounds = name === "mass_msun" ? { min: LEAST_MSUN, max: MOST_MSUN } : {};
    const input = make("input", {
      type: "number",
      step: "any",
      required: true,
      ...bounds,
      "aria-label": `Subhalo ${number + 1}: ${words}`,
      onchange: () => this.edit(input, number, name),
    });
    return input;
  }

  /** @param {HTMLInputElement} input @param {number} number @param {string} name */
  edit(input, number, name) {
    if (!input.reportValidity()) return;
    this.desk.scene.subhaloes[number][name] = rounded(Number(input.value));
    this.desk.edited();
  }

  /** @param {Subhalo} subhalo @param {number} number */
  showRow(subhalo, number) {
    const { row, choose, inputs } = this.rows[number];
    const isChosen = this.desk.chosen === number;
    row.toggleAttribute("data-chosen", isChosen);
    choose.setAttribute("aria-pressed", String(isChosen));
    for (const [name, input] of Object.entries(inputs)) {
      if (document.activeElement !== input) input.value = fieldText(name, subhalo[/** @type {keyof Subhalo} */ (name)]);
    }
  }

  showString() {
    const { string } = this.desk.scene;
    const { fields, choose, remove, add } = this.controls;
    for (const control of [...fields, choose, remove]) control.hidden = !string;
    add.hidden = Boolean(string);
    choose.setAttribute("aria-pressed", String(this.desk.chosen === "string"));
    if (!string) return;
    for (const [name] of STRING_FIELDS) {
      const input = find(`string-${name}`);
      if (document.activeElement !== input) input.value = fieldText(name, string[name]);
    }
  }
}
