/** The second view: a lens to play with. Every change is simulated, and predicted from, at once. */

import { json } from "./api.js";
import { bars } from "./bars.js";
import { Dials } from "./dials.js";
import { complain, fillSelect, find, say } from "./dom.js";
import { Latest } from "./latest.js";
import { Masses } from "./masses.js";
import { milliseconds, typed } from "./numbers.js";
import { Panels } from "./panels.js";
import { best, conclusion, unknownSurvey } from "./predictions.js";
import { LEAST_MSUN, MOST_MSUN, MOST_SUBHALOES, packed, rounded, tidied, unpacked } from "./scene.js";
import { Search } from "./search.js";

const FIRST = { label: "sphere", seed: 4 };
const MOST_SEED = 1e6;
const LINK_PAUSE_MS = 300;
const STRING_MSUN = 4e10;
const SUBHALO_MSUN = 3e9;

/**
 * Makes the view; what it returns is called with what follows #explore? each time it is opened.
 * @param {import("./api.js").ServiceDescription} service
 * @param {(words: string) => void} remember puts words behind #explore?
 */
export function startExplore({ networks }, remember) {
  const desk = new Desk(networks, remember);
  return (/** @type {string} */ words) => desk.open(words).catch((error) => complain(find("explore-problem"), error));
}

/**
 * @typedef {import("./predictions.js").Network} Network
 * @typedef {import("./predictions.js").Prediction} Prediction
 * @typedef {import("./scene.js").Scene} Scene
 * @typedef {import("./scene.js").Subhalo} Subhalo
 * @typedef {import("./masses.js").Which} Which
 * @typedef {import("./api.js").EncodedArray} EncodedArray
 * @typedef {{x: number, y: number}} Point  arcsec from the centre
 * @typedef {{name: string, description: string, sliders: Record<string, [number, number]>}} Survey
 *
 * @typedef {object} Simulated  the answer of /v1/simulate
 * @property {EncodedArray} counts
 * @property {string} [pixels]  unit of `counts`, where it is not counts
 * @property {EncodedArray} residual
 * @property {number} pixel_scale
 * @property {number} render_ms
 * @property {(Prediction & {map: any})[]} predictions
 */

/** The scene, what is chosen in it, and the parts of the view that show and change them. */
export class Desk {
  /** @param {Network[]} networks @param {(words: string) => void} remember */
  constructor(networks, remember) {
    this.networks = networks;
    this.remember = remember;
    /** @type {any} a `Scene`, once the first is drawn */
    this.scene = null;
    /** @type {Which | null} */
    this.chosen = null;
    /** @type {Point | null} */
    this.place = null;
    this.showsMasses = true;
    /** @type {Survey[]} */
    this.surveys = [];
    this.drawing = new Latest();
    /** The list of surveys, once it is asked for. @type {Promise<void> | undefined} */
    this.learning = undefined;
    /** @type {Prediction[]} */
    this.predictions = [];
    this.label = FIRST.label;
    this.nextMass = SUBHALO_MSUN;
    this.isAsking = this.isStale = false;
    /** When the change was made that is not yet asked about, ms. @type {number | undefined} */
    this.since = undefined;
    /** The state in the address. */
    this.held = "";
    fillSelect(
      find("explore-network"),
      networks.map(({ name }) => [name, name]),
    );
    find("explore-network").value = best(networks);
    this.dials = new Dials(() => this.changed());
    this.panels = new Panels(this);
    this.masses = new Masses(this);
    this.search = new Search(this);
    this.wire();
  }

  wire() {
    for (const button of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("button.draw")))
      button.addEventListener("click", () => this.draw(button.dataset.label ?? FIRST.label));
    find("survey").addEventListener("change", () => this.draw(this.label));
    for (const id of ["explore-network", "explore-stretch", "explore-colours"]) {
      find(id).addEventListener("change", () => {
        this.paint();
        this.link();
      });
    }
    find("show-masses").addEventListener("change", () => {
      this.showsMasses = find("show-masses").checked;
      this.panels.redraw();
    });
    find("mass-slider").addEventListener("input", () => this.weigh(10 ** find("mass-slider").value));
    find("mass").addEventListener(
      "change",
      () => find("mass").reportValidity() && this.weigh(Number(find("mass").value)),
    );
    find("copy-link").addEventListener("click", () => this.copyLink());
    this.showMass(this.nextMass);
  }

  // --- opening ---

  /** @param {string} words what follows #explore? in the address */
  async open(words) {
    await (this.learning ??= this.learnSurveys());
    const link = new URLSearchParams(words).get("s");
    if (link && link === this.held) return;
    if (link) return this.openLink(link);
    if (!this.scene) await this.draw(FIRST.label, FIRST.seed);
  }

  async learnSurveys() {
    try {
      this.surveys = (await json("/v1/surveys")).surveys;
    } catch (error) {
      this.learning = undefined; // so that it is tried again
      throw error;
    }
    fillSelect(
      find("survey"),
      this.surveys.map(({ name }) => [name, name]),
    );
  }

  /** @param {string} link */
  async openLink(link) {
    let state;
    try {
      state = unpacked(link);
    } catch {
      await this.draw(FIRST.label, FIRST.seed);
      await this.simulating; // which clears what was complained of before
      return complain(find("explore-problem"), {
        message: "The link is damaged: part of it seems to be missing.",
        next: "Copy it once more, in full. Until then, here is another lens.",
      });
    }
    const { scene, network, stretch, colours } = state;
    for (const [id, value] of [
      ["explore-network", network],
      ["explore-stretch", stretch],
      ["explore-colours", colours],
    ]) {
      if ([...find(id).options].some((option) => option.value === value)) find(id).value = value;
    }
    find("survey").value = scene.survey;
    this.use(scene);
  }

  /** Draws a random lens of a class; of several draws under way the last one counts. @param {string} label */
  async draw(label, seed = Math.floor(Math.random() * MOST_SEED)) {
    this.label = label;
    const signal = this.drawing.begin();
    try {
      const scene = await json("/v1/scene", {
        query: [
          ["survey", find("survey").value],
          ["label", label],
          ["seed", seed],
        ],
        signal,
      });
      if (!signal.aborted) this.use(tidied(scene));
    } catch (error) {
      if (!signal.aborted) complain(find("explore-problem"), error);
    }
  }

  /** @param {Scene} scene */
  use(scene) {
    this.drawing.abort();
    this.scene = scene;
    this.chosen = this.place = null;
    const survey = this.surveys.find(({ name }) => name === scene.survey);
    find("survey-words").textContent = survey ? survey.description.trim().split("\n\n")[0] : "";
    this.dials.show(scene, survey?.sliders);
    this.changed();
    this.choose(null);
  }

  // --- changing ---

  /** Something is other than it was: tables now, pictures as soon as the service has them. */
  changed() {
    this.since ??= performance.now();
    this.isStale = true;
    this.masses.show();
    this.panels.redraw();
    if (!this.isAsking) this.simulating = this.ask();
    this.link();
  }

  edited() {
    this.changed();
    this.choose(this.chosen);
  }

  /** One request at a time; what is asked next is the latest state, and those between are never asked. */
  async ask() {
    if (this.isAsking || !this.isStale) return;
    const since = this.since ?? performance.now();
    this.isAsking = true;
    this.isStale = false;
    this.since = undefined;
    try {
      const { survey } = this.scene;
      this.take(await json("/v1/simulate", { body: this.scene }), since, survey);
    } catch (error) {
      const { message, need, next } = /** @type {import("./api.js").Problem} */ (error);
      complain(find("explore-problem"), {
        message,
        need,
        next: [next, "The pictures still show the lens before."].filter(Boolean).join(" "),
      });
    }
    this.isAsking = false;
    await this.ask();
  }

  /** Shows an answer. @param {Simulated} result @param {number} since when the change was made, ms @param {string} survey of the scene */
  take(result, since, survey) {
    complain(find("explore-problem"), null);
    this.predictions = result.predictions;
    this.panels.take(result);
    this.paint();
    const unknown = unknownSurvey(this.predictions, this.networks, survey);
    const isAnswered = this.predictions.some(({ label }) => label);
    const words = [isAnswered ? conclusion(this.predictions) : "", unknown].filter(Boolean).join(" ");
    find("explore-conclusion").textContent = words;
    say(words);
    const rest = `the scene itself took ${milliseconds(result.render_ms)}`;
    requestAnimationFrame(() => {
      find("timing").textContent = `Shown ${Math.round(performance.now() - since)} ms after the change; ${rest}`;
      find("timing").dataset.ms = String(Math.round(performance.now() - since));
    });
  }

  paint() {
    const network = this.networks.find(({ name }) => name === this.network());
    if (!network || !this.predictions.length) return;
    this.panels.paint({ network, stretch: find("explore-stretch").value, colours: find("explore-colours").value });
    find("explore-bars").replaceChildren(
      ...this.predictions.map((prediction) => bars(prediction, prediction.network === network.name)),
    );
    find("search-network").textContent = network.name;
  }

  // --- what pictures, tables and forms do ---

  get mode() {
    return /** @type {HTMLInputElement} */ (document.querySelector('input[name="mode"]:checked')).value;
  }

  network() {
    return find("explore-network").value;
  }

  /** @param {Which | null} which */
  choose(which) {
    this.chosen = which;
    const lump = this.chosenMass;
    find("mass-of").textContent = lump
      ? which === "string"
        ? "the string"
        : `subhalo ${Number(which) + 1}`
      : "the next subhalo";
    this.showMass(lump ? lump.mass_msun : this.nextMass);
    if (lump && which !== "string") this.search.show(lump);
    this.masses.show();
    this.panels.redraw();
  }

  /** The subhalo or string that is chosen. */
  get chosenMass() {
    if (this.chosen === null) return null;
    return this.chosen === "string" ? this.scene.string : this.scene.subhaloes[this.chosen];
  }

  /** @param {Subhalo} subhalo */
  add(subhalo) {
    if (this.scene.subhaloes.length >= MOST_SUBHALOES) {
      return complain(find("explore-problem"), {
        message: `There are ${MOST_SUBHALOES} subhaloes already, the most that a lens may have.`,
        next: "Remove one first.",
      });
    }
    this.scene.subhaloes.push(subhalo);
    this.choose(this.scene.subhaloes.length - 1);
    this.changed();
  }

  /** @param {Which} which */
  remove(which) {
    if (which === "string") this.scene.string = null;
    else this.scene.subhaloes.splice(which, 1);
    this.choose(null);
    this.changed();
  }

  removeAll() {
    Object.assign(this.scene, { subhaloes: [], string: null });
    this.choose(null);
    this.changed();
  }

  /** Puts a string in the place of any other; it keeps that one's mass. @param {Omit<import("./scene.js").Vortex, "mass_msun">} string */
  setString(string) {
    this.scene.string = { mass_msun: this.scene.string?.mass_msun ?? STRING_MSUN, ...string };
    this.choose("string");
    this.changed();
  }

  /** @param {Which} which @param {number} dx arcsec @param {number} dy arcsec */
  moveBy(which, dx, dy) {
    const lump = which === "string" ? this.scene.string : this.scene.subhaloes[which];
    [lump.x, lump.y] = [rounded(Number((lump.x + dx).toFixed(3))), rounded(Number((lump.y + dy).toFixed(3)))];
    if (which !== "string") this.search.show(lump);
    this.changed();
  }

  /** @param {Point} place */
  point(place) {
    this.place = place;
    this.choose(null);
    this.search.show(place);
  }

  // --- the mass slider ---

  /** @param {number} msun */
  showMass(msun) {
    find("mass-slider").value = Math.log10(msun);
    find("mass").value = typed(msun);
  }

  /** @param {number} msun */
  weigh(msun) {
    const kept = Number(Math.min(MOST_MSUN, Math.max(LEAST_MSUN, msun)).toPrecision(3));
    this.showMass(kept);
    if (this.chosen !== "string") this.nextMass = kept;
    if (!this.chosenMass) return;
    this.chosenMass.mass_msun = kept;
    this.changed();
  }

  // --- the link ---

  packed() {
    const [stretch, colours] = [find("explore-stretch").value, find("explore-colours").value];
    return packed({ scene: this.scene, network: this.network(), stretch, colours });
  }

  /** Browsers allow only so many changes of the address a second. */
  link() {
    clearTimeout(this.linking);
    this.linking = setTimeout(() => this.linkNow(), LINK_PAUSE_MS);
  }

  linkNow() {
    this.held = this.packed();
    this.remember(`s=${this.held}`);
  }

  async copyLink() {
    this.linkNow();
    const box = find("link");
    box.value = location.href;
    try {
      await navigator.clipboard.writeText(location.href);
      find("copy-link").textContent = "Copied";
      setTimeout(() => (find("copy-link").textContent = "Copy link"), 2000);
      say("The link is copied.");
    } catch {
      box.hidden = false; // a browser may forbid it: then by hand
      box.select();
    }
  }
}
