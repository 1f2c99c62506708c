/** The sliders of a lens, each with its number. */

import { find, make } from "./dom.js";
import { plain } from "./numbers.js";
import { DIALS, reading, turn } from "./scene.js";

const MOST_SEED = 2 ** 31;

export class Dials {
  /** @param {() => void} whenTurned */
  constructor(whenTurned) {
    this.whenTurned = whenTurned;
    this.scene = null;
    this.parts = new Map();
    const form = find("dials");
    form.addEventListener("submit", (event) => event.preventDefault());
    for (const [title, dials] of DIALS) form.append(make("fieldset", {}, ...this.group(title, dials)));
    form.lastChild.append(this.seedDial());
  }

  group(title, dials) {
    const legend = make("legend", { class: "unseen", text: title });
    return [legend, make("h2", { text: title, "aria-hidden": "true" }), ...dials.map((dial) => this.dial(title, dial))];
  }

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

  turned(dial, by, other) {
    if (by.value === "" || !by.checkValidity()) return by.reportValidity();
    other.value = by.value;
    turn(this.scene, dial, Number(by.value));
    this.whenTurned();
  }

  seedDial() {
    const seed = make("input", { type: "number", id: "seed", min: 0, step: 1 });
    const roll = make("button", { type: "button", id: "roll", text: "Roll again" });
    const set = (value) => {
      this.scene.seed = value;
      seed.value = value;
      this.whenTurned();
    };
    seed.addEventListener("input", () => seed.checkValidity() && seed.value !== "" && set(Number(seed.value)));
    roll.addEventListener("click", () => set(Math.floor(Math.random() * MOST_SEED)));
    this.seed = seed;
    return make("div", { class: "dial seed" }, make("label", { for: "seed", text: "Seed of the noise" }), seed, roll);
  }

  /**
   * Shows another scene. A survey may draw beyond a dial's usual range, which then grows.
   * @param {Record<string, [number, number]>} bounds what the service allows
   */
  show(scene, bounds = {}) {
    this.scene = scene;
    for (const [dial, { slider, number }] of this.parts) {
      const value = reading(scene, dial);
      const most = bounds[dial.path]?.[1] ?? Infinity;
      for (const input of [slider, number]) {
        input.min = Math.min(dial.low, value);
        input.max = value > dial.high ? Math.min(2 * value, most) : dial.high;
        input.value = plain(value, dial.isAngle ? 1 : 4);
      }
    }
    this.seed.value = scene.seed;
  }
}
