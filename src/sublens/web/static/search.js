/** The search for the smallest mass that a network detects. */

import { lines, Problem, request } from "./api.js";
import { complain, find, make, say } from "./dom.js";
import { Latest } from "./latest.js";
import { mass, percent, signed } from "./numbers.js";

export class Search {
  /** @param {import("./explore.js").Desk} desk */
  constructor(desk) {
    this.desk = desk;
    this.running = new Latest();
    find("search-form").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      this.run();
    });
    find("search-stop").addEventListener("click", () => this.running.abort());
    for (const id of ["search-x", "search-y"]) find(id).addEventListener("input", () => desk.point(this.place()));
  }

  place() {
    return { x: Number(find("search-x").value), y: Number(find("search-y").value) };
  }

  /** Fills in a place that was clicked or chosen. @param {{x: number, y: number}} place */
  show({ x, y }) {
    [find("search-x").value, find("search-y").value] = [x, y];
  }

  async run() {
    const signal = this.running.begin();
    this.setBusy(true);
    const network = this.desk.network();
    const { x, y } = this.place();
    try {
      const response = await request("/v1/smallest-mass", {
        query: [
          ["network", network],
          ["x", x],
          ["y", y],
        ],
        body: this.desk.scene,
        signal,
      });
      const at = `At x ${signed(x, 2)}″, y ${signed(y, 2)}″`;
      for await (const step of lines(response)) this.take(step, network, at);
    } catch (error) {
      if (signal.aborted) this.conclude("Cancelled.");
      else complain(find("search-problem"), error);
    }
    this.setBusy(false);
  }

  /** Takes in a line of the answer. @param {any} step @param {string} network @param {string} at the place, in words */
  take(step, network, at) {
    if (step.error) throw new Problem({ detail: step.error });
    if (step.done) return this.conclude(outcome(step, network, at));
    const bar = find("search-progress");
    [bar.max, bar.value] = [step.of, step.step];
    const what = step.mass_msun ? `${mass(step.mass_msun)} M☉` : "nothing";
    const words = `${what}: ${percent(step.probability)}, ${step.visible ? "detectable" : "not detectable"}`;
    find("search-log").append(make("li", { text: words }));
    find("search-log").scrollTop = find("search-log").scrollHeight;
  }

  /** @param {string} words */
  conclude(words) {
    find("search-result").textContent = words;
    find("search-result").hidden = false;
    say(words);
  }

  /** @param {boolean} isBusy */
  setBusy(isBusy) {
    find("search").disabled = isBusy;
    find("search-stop").hidden = find("search-progress").hidden = !isBusy;
    if (!isBusy) return;
    complain(find("search-problem"), null);
    find("search-progress").value = 0;
    find("search-log").replaceChildren();
    find("search-log").hidden = false;
    find("search-result").hidden = true;
  }
}

/**
 * @param {{smallest_msun: number | null, low_msun: number, high_msun: number, n_noise: number}} answer
 * @param {string} network
 * @param {string} at
 */
function outcome({ smallest_msun: smallest, low_msun: low, high_msun: high, n_noise: n }, network, at) {
  if (smallest === null)
    return `${at}, ${network} does not detect even ${mass(high)} M☉, over ${n} draws of the noise.`;
  const from = smallest <= low * 1.001 ? `even ${mass(low)} M☉` : `a subhalo from ${mass(smallest)} M☉ on`;
  return `${at}, ${network} detects ${from}, over ${n} draws of the noise.`;
}
