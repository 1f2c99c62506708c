/** The search for the smallest mass that a network notices. */

import { lines, Problem, request } from "./api.js";
import { complain, find, make, say } from "./dom.js";
import { mass, percent, signed } from "./numbers.js";

export class Search {
  /** @param {object} desk see `Masses`; also `network()` */
  constructor(desk) {
    this.desk = desk;
    find("search-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    find("search-stop").addEventListener("click", () => this.abort?.abort());
    for (const id of ["search-x", "search-y"]) find(id).addEventListener("input", () => desk.point(this.place()));
  }

  place() {
    return { x: Number(find("search-x").value), y: Number(find("search-y").value) };
  }

  /** Fills in a place that was clicked or chosen. */
  show({ x, y }) {
    [find("search-x").value, find("search-y").value] = [x, y];
  }

  async run() {
    this.abort = new AbortController();
    this.setBusy(true);
    const network = this.desk.network();
    const { x, y } = this.place();
    try {
      const query = [
        ["network", network],
        ["x", x],
        ["y", y],
      ];
      const response = await request("/v1/smallest-mass", { query, body: this.desk.scene, signal: this.abort.signal });
      const at = `At x ${signed(x, 2)}″, y ${signed(y, 2)}″`;
      for await (const step of lines(response)) this.take(step, network, at);
    } catch (error) {
      if (error.name === "AbortError") this.conclude("Cancelled.");
      else complain(find("search-problem"), error);
    }
    this.setBusy(false);
  }

  take(step, network, at) {
    if (step.error) throw new Problem({ detail: step.error });
    if (step.done) return this.conclude(outcome(step, network, at));
    const bar = find("search-progress");
    [bar.max, bar.value] = [step.of, step.step];
    const what = step.mass_msun ? `${mass(step.mass_msun)} M☉` : "nothing";
    const words = `${what}: ${percent(step.probability)}, ${step.visible ? "visible" : "not visible"}`;
    find("search-log").append(make("li", { text: words }));
    find("search-log").scrollTop = find("search-log").scrollHeight;
  }

  conclude(words) {
    find("search-result").textContent = words;
    find("search-result").hidden = false;
    say(words);
  }

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

function outcome({ smallest_msun: smallest, low_msun: low, high_msun: high, n_noise: n }, network, at) {
  if (smallest === null)
    return `${at}, ${network} does not notice even ${mass(high)} M☉, over ${n} draws of the noise.`;
  const from = smallest <= low * 1.001 ? `even ${mass(low)} M☉` : `a subhalo from ${mass(smallest)} M☉ on`;
  return `${at}, ${network} notices ${from}, over ${n} draws of the noise.`;
}
