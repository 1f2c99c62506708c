/** The second view: a lens to play with. Every change is simulated and judged at once. */

import { json } from "./api.js";
import { bars, best, conclusion } from "./answers.js";
import { Dials } from "./dials.js";
import { complain, fillSelect, find, say } from "./dom.js";
import { Masses } from "./masses.js";
import { milliseconds, typed } from "./numbers.js";
import { LEAST_MSUN, MOST_MSUN, MOST_SUBHALOES, packed, rounded, tidied, unpacked } from "./scene.js";
import { Search } from "./search.js";
import { Sights } from "./sights.js";

const FIRST = { label: "sphere", seed: 4 };
const MOST_SEED = 1e6;
const LINK_PAUSE_MS = 300;
const STRING_MSUN = 4e10;
const USUAL_MSUN = 3e9; // of a subhalo

/**
 * Makes the view; what it returns is called with what follows #explore? each time it is opened.
 * @param {object} service the answer of /v1/networks
 * @param {(words: string) => void} remember puts words behind #explore?
 */
export function startExplore({ networks }, remember) {
  const desk = new Desk(networks, remember);
  return (words) => desk.open(words).catch((error) => complain(find("explore-problem"), error));
}

class Desk {
  constructor(networks, remember) {
    Object.assign(this, { networks, remember, scene: null, chosen: null, place: null, showsMasses: true });
    this.surveys = null;
    this.nextMass = USUAL_MSUN;
    fillSelect(
      find("explore-network"),
      networks.map(({ name }) => [name, name]),
    );
    find("explore-network").value = best(networks);
    this.dials = new Dials(() => this.changed());
    this.sights = new Sights(this);
    this.masses = new Masses(this);
    this.search = new Search(this);
    this.wire();
  }

  wire() {
    for (const button of document.querySelectorAll("button.draw"))
      button.addEventListener("click", () => this.draw(button.dataset.label));
    find("survey").addEventListener("change", () => this.draw(this.label));
    for (const id of ["explore-network", "explore-stretch", "explore-colours"]) {
      find(id).addEventListener("change", () => {
        this.paint();
        this.link();
      });
    }
    find("show-masses").addEventListener("change", (event) => {
      this.showsMasses = event.target.checked;
      this.sights.redraw();
    });
    find("mass-slider").addEventListener("input", (event) => this.weigh(10 ** event.target.value));
    find("mass").addEventListener(
      "change",
      (event) => event.target.reportValidity() && this.weigh(Number(event.target.value)),
    );
    find("copy-link").addEventListener("click", () => this.copyLink());
    this.showMass(this.nextMass);
  }

  // --- opening ---

  /** @param {string} words what follows #explore? in the address */
  async open(words) {
    await this.learnSurveys();
    const held = new URLSearchParams(words).get("s");
    if (held && held === this.held) return;
    if (held) return this.openLink(held);
    if (!this.scene) await this.draw(FIRST.label, FIRST.seed);
  }

  async learnSurveys() {
    if (this.surveys) return;
    this.surveys = (await json("/v1/surveys")).surveys;
    fillSelect(
      find("survey"),
      this.surveys.map(({ name }) => [name, name]),
    );
  }

  async openLink(held) {
    let state;
    try {
      state = unpacked(held);
    } catch {
      await this.draw(FIRST.label, FIRST.seed);
      await this.shown; // which clears what was complained of before
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

  /** A random lens of a class. */
  async draw(label, seed = Math.floor(Math.random() * MOST_SEED)) {
    this.label = label;
    try {
      const scene = await json("/v1/scene", {
        query: [
          ["survey", find("survey").value],
          ["label", label],
          ["seed", seed],
        ],
      });
      this.use(tidied(scene));
    } catch (error) {
      complain(find("explore-problem"), error);
    }
  }

  use(scene) {
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
    this.sights.redraw();
    if (!this.isAsking) this.shown = this.ask();
    this.link();
  }

  edited() {
    this.changed();
    this.choose(this.chosen);
  }

  /** One request at a time; what is asked next is the latest state, and those between are never asked. */
  async ask() {
    if (this.isAsking || !this.isStale) return;
    const since = this.since;
    this.isAsking = true;
    this.isStale = false;
    this.since = undefined;
    try {
      this.take(await json("/v1/simulate", { body: this.scene }), since);
    } catch (error) {
      complain(find("explore-problem"), {
        message: error.message,
        need: error.need,
        next: [error.next, "The pictures still show the lens before."].filter(Boolean).join(" "),
      });
    }
    this.isAsking = false;
    await this.ask();
  }

  take(result, since) {
    complain(find("explore-problem"), null);
    this.predictions = result.predictions;
    this.sights.take(result);
    this.paint();
    const words = conclusion(this.predictions);
    find("explore-conclusion").textContent = words;
    say(words);
    const rest = `the scene itself took ${milliseconds(result.render_ms)}`;
    requestAnimationFrame(() => {
      find("timing").textContent = `Shown ${Math.round(performance.now() - since)} ms after the change; ${rest}`;
      find("timing").dataset.ms = String(Math.round(performance.now() - since));
    });
  }

  paint() {
    if (!this.predictions) return;
    const network = this.networks.find(({ name }) => name === this.network());
    this.sights.paint({ network, stretch: find("explore-stretch").value, colours: find("explore-colours").value });
    find("explore-bars").replaceChildren(...this.predictions.map((one) => bars(one, one.network === network.name)));
    find("search-network").textContent = network.name;
  }

  // --- what pictures, tables and forms do ---

  get mode() {
    return document.querySelector('input[name="mode"]:checked').value;
  }

  network() {
    return find("explore-network").value;
  }

  choose(which) {
    this.chosen = which;
    const one = this.chosenMass;
    find("mass-of").textContent = one
      ? which === "string"
        ? "the string"
        : `subhalo ${which + 1}`
      : "the next subhalo";
    this.showMass(one ? one.mass_msun : this.nextMass);
    if (one && which !== "string") this.search.show(one);
    this.masses.show();
    this.sights.redraw();
  }

  /** The subhalo or string that is chosen. */
  get chosenMass() {
    if (this.chosen === null) return null;
    return this.chosen === "string" ? this.scene.string : this.scene.subhaloes[this.chosen];
  }

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

  /** Puts a string in the place of any other; it keeps that one's mass. */
  setString(string) {
    this.scene.string = { mass_msun: this.scene.string?.mass_msun ?? STRING_MSUN, ...string };
    this.choose("string");
    this.changed();
  }

  moveBy(which, dx, dy) {
    const one = which === "string" ? this.scene.string : this.scene.subhaloes[which];
    [one.x, one.y] = [rounded(Number((one.x + dx).toFixed(3))), rounded(Number((one.y + dy).toFixed(3)))];
    if (which !== "string") this.search.show(one);
    this.changed();
  }

  point(place) {
    this.place = place;
    this.choose(null);
    this.search.show(place);
  }

  // --- the mass slider ---

  showMass(msun) {
    find("mass-slider").value = Math.log10(msun);
    find("mass").value = typed(msun);
  }

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
