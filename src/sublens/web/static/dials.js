/** The sliders of a lens, each with its number. */

import { find, make } from "./dom.js";
import { plain } from "./numbers.js";
import { DIALS, reading, turn } from "./scene.js";

/** @typedef {import("./scene.js").Dial} Dial */

const MOST_SEED = 2 ** 31;

export class Dials {
  /** @param {() => void} whenTurned */
  constructor(whenTurned) {
    this.whenTurned = whenTurned;
    /** @type {any} a `Scene`, once one is shown */
    this.scene = null;
    /** @type {Map<Dial, {slider: HTMLInputElement, number: HTMLInputElement}>} */
    this.parts = new Map();
    const form = find("dials");
    form.addEventListener("submit", (/** @type {Event} */ event) => event.preventDefault());
    for (const [title, dials] of DIALS) form.append(make("fieldset", {}, ...this.group(title, dials)));
    form.lastChild.append(this.seedDial());
  }

  /** @param {string} title @param {Dial[]} dials */
  group(title, dials) {
    const legend = make("legend", { class: "unseen", text: title });
    return [legend, make("h2", { text: title, "aria-hidden": "true" }), ...dials.map((dial) => this.dial(title, dial))];
  }

  /** @param {string} title @param {Dial} dial */
  dial(title, dial) {
    const { low: min, high: max, step } = dial;
    const name = `dial-${dial.path.replace(".", "-")}`;
    const number = make("input", { type: "number", id: name, min, max, step: "any" });
    const slider = make("input", {
      type: "range",
      min,
      max,
      step,
      "aria-label": `${title}: ${dial.name}, slider`,
      id: `${name}-slider`,
    });
    slider.addEventListener("input", () => this.turned(dial, slider, number));
    number.addEventListener("input", () => this.turned(dial, number, slider));
    this.parts.set(dial, { slider, number });
    const unit = dial.unit ? make("span", { class: "unit", text: `, ${dial.unit}` }) : "";
    return make("div", { class: "dial" }, make("label", { for: name }, dial.name, unit), number, slider);
  }

  /** @param {Dial} dial @param {HTMLInputElement} by @param {HTMLInputElement} other */
  turned(dial, by, other) {
    if (by.value === "" || !by.checkValidity()) return by.reportValidity();
    other.value = by.value;
    turn(this.scene, dial, Number(by.value));
    this.whenTurned();
  }

  seedDial() {
    const seed = make("input", { type: "number", id: "seed", min: 0, step: 1 });
    const roll = make("button", { type: "button", id: "roll", text: "Roll again" });
    const set = (/** @type {number} */ value) => {
      this.scene.seed = value;
      seed.value = String(value);
      this.whenTurned();
    };
    seed.addEventListener("input", () => seed.checkValidity() && seed.value !== "" && set(Number(seed.value)));
    roll.addEventListener("click", () => set(Math.floor(Math.random() * MOST_SEED)));
    return make("div", { class: "dial seed" }, make("label", { for: "seed", text: "Seed of the noise" }), seed, roll);
  }

  /**
   * Shows another scene. A survey may draw beyond a dial's own range, which then grows.
   * @param {import("./scene.js").Scene} scene
   * @param {Record<string, [number, number]>} bounds what the service allows
   */
  show(scene, bounds = {}) {
    this.scene = scene;
    for (const [dial, { slider, number }] of this.parts) {
      const value = reading(scene, dial);
      const most = bounds[dial.path]?.[1] ?? Infinity;
      for (const input of [slider, number]) {
        input.min = String(Math.min(dial.low, value));
        input.max = String(value > dial.high ? Math.min(2 * value, most) : dial.high);
        input.value = plain(value, dial.isAngle ? 1 : 4);
      }
    }
    find("seed").value = scene.seed;
  }
}
