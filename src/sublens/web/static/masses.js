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
const USUAL_STRING = { x: 0.5, y: 0.5, angle: 0.5, half_length: 1, mass_msun: 4e10 };
const DEGREES = 180 / Math.PI;

/** What a number field shows of a mass or a string. */
function shown(name, value) {
  if (name === "mass_msun") return typed(value);
  return plain(name === "angle" ? value * DEGREES : value, 3);
}

export class Masses {
  /**
   * @param {object} desk what is on the table; its `scene`, `chosen` (a number, "string" or null), and
   * `choose(which)`, `add(subhalo)`, `remove(which)`, `edited()`, which also calls `show` here
   */
  constructor(desk) {
    this.desk = desk;
    this.rows = [];
    find("add-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const [x, y, msun] = ["add-x", "add-y", "add-mass"].map((id) => Number(find(id).value));
      desk.add({ x: rounded(x), y: rounded(y), mass_msun: rounded(msun) });
    });
    find("remove-all").addEventListener("click", () => desk.removeAll());
    this.makeString();
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
    this.choice = make("button", { type: "button", text: "Choose", onclick: () => this.desk.choose("string") });
    this.gone = make("button", { type: "button", text: "Remove string", onclick: () => this.desk.remove("string") });
    this.added = make("button", {
      type: "button",
      id: "add-string",
      text: "Add a string",
      onclick: () => this.desk.setString({ ...USUAL_STRING }),
    });
    find("string-controls").replaceChildren(...fields, this.choice, this.gone, this.added);
    this.stringFields = fields;
  }

  editString(name) {
    const value = Number(find(`string-${name}`).value);
    this.desk.scene.string[name] = rounded(name === "angle" ? value / DEGREES : value);
    this.desk.edited();
  }

  /** Brings the tables up to the scene; rows are made anew only where their number has changed. */
  show() {
    const { scene } = this.desk;
    if (scene.subhaloes.length !== this.rows.length) this.makeRows();
    scene.subhaloes.forEach((subhalo, number) => this.showRow(subhalo, number));
    this.showString();
    const total = scene.subhaloes.reduce((sum, one) => sum + one.mass_msun, scene.string?.mass_msun ?? 0);
    const n = scene.subhaloes.length;
    const words = [n && `${n} subhalo${n > 1 ? "es" : ""}`, scene.string && "a string"].filter(Boolean).join(" and ");
    find("mass-words").textContent = words ? `${words}, ${mass(total)} M☉ in all` : "None: the lens is smooth";
    find("mass-scroll").hidden = !n;
    find("remove-all").disabled = !words;
  }

  makeRows() {
    this.rows = this.desk.scene.subhaloes.map((_, number) => {
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
      const cells = [choose, ...Object.values(inputs), remove].map((one) => make("td", {}, one));
      return { row: make("tr", {}, ...cells), choose, inputs };
    });
    find("mass-rows").replaceChildren(...this.rows.map(({ row }) => row));
  }

  input(number, name) {
    const words = { x: "x", y: "y", mass_msun: "mass" }[name];
    const bounds = name === "mass_msun" ? { min: LEAST_MSUN, max: MOST_MSUN } : {};
    return make("input", {
      type: "number",
      step: "any",
      required: true,
      ...bounds,
      "aria-label": `Subhalo ${number + 1}: ${words}`,
      onchange: (event) => this.edit(event.target, number, name),
    });
  }

  edit(input, number, name) {
    if (!input.reportValidity()) return;
    this.desk.scene.subhaloes[number][name] = rounded(Number(input.value));
    this.desk.edited();
  }

  showRow(subhalo, number) {
    const { row, choose, inputs } = this.rows[number];
    const isChosen = this.desk.chosen === number;
    row.toggleAttribute("data-chosen", isChosen);
    choose.setAttribute("aria-pressed", String(isChosen));
    for (const [name, input] of Object.entries(inputs)) {
      if (document.activeElement !== input) input.value = shown(name, subhalo[name]);
    }
  }

  showString() {
    const { string } = this.desk.scene;
    for (const field of [...this.stringFields, this.choice, this.gone]) field.hidden = !string;
    this.added.hidden = Boolean(string);
    this.choice.setAttribute("aria-pressed", String(this.desk.chosen === "string"));
    if (!string) return;
    for (const [name] of STRING_FIELDS) {
      const input = find(`string-${name}`);
      if (document.activeElement !== input) input.value = shown(name, string[name]);
    }
  }
}
