/** One image shown large, with the predictions for it. */

import { bars, chip, oodTag } from "./bars.js";
import { greatest, limits, painted, veiled } from "./colours.js";
import { choices, correct, correctionOf, whenCorrected } from "./corrections.js";
import { complain, fillSelect, find, make, say } from "./dom.js";
import { mass, milliseconds, percent, signed } from "./numbers.js";
import { makeMovable, Picture } from "./picture.js";
import {
  conclusion,
  MEANINGS,
  measured,
  named,
  oodFlag,
  oodInWords,
  oodWarning,
  setInBraces,
  setInWords,
} from "./predictions.js";

/**
 * @typedef {import("./api.js").Plane} Plane
 * @typedef {import("./catalogue.js").Item} Item
 * @typedef {import("./predictions.js").Network} Network
 * @typedef {import("./predictions.js").Prediction} Prediction
 */

const MASS_COLOUR = /** @type {const} */ ([0, 205, 255]);
const SALIENCY_COLOUR = /** @type {const} */ ([80, 255, 120]);

/** Msun in a cell, from which on a map is drawn in full colour: what is hardly there should not look like much. */
export const PLAIN_MSUN = 1e9;

export class Viewer {
  /**
   * @param {object} options
   * @param {Record<string, Network>} options.networks by name
   * @param {(item: Item, change: {hdu?: number, pixelScale?: number}) => void} options.askAgain
   * @param {(item: Item) => Promise<void>} options.fetchSaliency fills in the chosen network's saliency
   * @param {() => Network} options.chosen the network that is followed
   */
  constructor({ networks, askAgain, fetchSaliency, chosen }) {
    this.networks = networks;
    this.askAgain = askAgain;
    this.fetchSaliency = fetchSaliency;
    this.chosen = chosen;
    /** @type {Item | null} */
    this.item = null;
    /** Predictions whose saliency map is being computed. @type {Set<Prediction>} */
    this.pending = new Set();
    this.picture = new Picture(find("large"));
    this.picture.whenMoved = () => (find("zoom").textContent = `${Math.round(100 * this.picture.zoom)} %`);
    makeMovable(this.picture, find("large-stage"));
    this.wireLook();
    this.wireQuestions();
    this.wireCorrection();
  }

  wireLook() {
    for (const id of ["stretch", "colours", "overlay", "opacity"])
      find(id).addEventListener("input", () => this.paint());
    find("zoom-in").addEventListener("click", () => this.picture.zoomBy(1.5));
    find("zoom-out").addEventListener("click", () => this.picture.zoomBy(1 / 1.5));
    find("zoom-fit").addEventListener("click", () => this.picture.zoomBy(0));
    find("large").addEventListener("pointermove", (/** @type {PointerEvent} */ event) => this.read(event));
    find("large").addEventListener("pointerleave", () => (find("readout").textContent = "\u00a0"));
  }

  wireQuestions() {
    find("hdu").addEventListener(
      "change",
      () => this.item && this.askAgain(this.item, { hdu: Number(find("hdu").value) }),
    );
    find("scale-form").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      if (this.item) this.askAgain(this.item, { pixelScale: Number(find("scale").value) });
    });
  }

  wireCorrection() {
    for (const name of ["correction", "comment"]) {
      const input = find(name);
      input.addEventListener("change", () => this.item && correct(this.item.key, { [name]: input.value }));
    }
    whenCorrected((key) => key === this.item?.key && this.showCorrection(this.item));
  }

  get prediction() {
    return this.item?.predictions[this.chosen().name];
  }

  /** @param {Item | null} item */
  show(item) {
    this.item = item;
    if (!item) return;
    find("large-name").textContent = item.id;
    const veil = find("large-veil");
    veil.hidden = Boolean(item.counts);
    veil.textContent = item.error || "Fetching the image again …";
    this.showQuestions(item);
    this.showCorrection(item);
    this.showPredictions(item);
    this.paint();
  }

  /** @param {Item} item */
  showQuestions({ extensions, job, counts, isScaleKnown }) {
    find("hdu-field").hidden = extensions.length < 2;
    fillSelect(
      find("hdu"),
      extensions.map(({ number, name, shape }) => [number, `${number} ${name} ${shape.join(" × ")}`]),
    );
    find("hdu").value = String(job.hdu ?? extensions[0]?.number ?? "");
    find("scale-form").hidden = !counts || (isScaleKnown && !job.pixelScale);
    find("scale").value = job.pixelScale ?? "";
  }

  /** @param {Item} item */
  showCorrection({ key }) {
    const { correction, comment } = correctionOf(key);
    fillSelect(find("correction"), choices(this.chosen().classes, correction));
    find("correction").value = correction;
    find("comment").value = comment;
  }

  /** @param {Item} item */
  showPredictions(item) {
    const { prediction } = this;
    const predictions = Object.values(item.predictions);
    find("headline").replaceChildren(...headline(item, prediction, this.chosen().name));
    this.showTrust(item, prediction);
    this.showMeasured(prediction);
    const notes = prediction?.notes ?? [];
    find("notes").hidden = !notes.length;
    find("notes").replaceChildren(...notes.map((text) => make("li", { text })));
    find("conclusion").textContent = conclusion(predictions);
    find("predict-bars").replaceChildren(...predictions.map((other) => bars(other, other === prediction)));
    find("comparison").replaceChildren(
      ...predictions.map((other) => comparisonRow(other, this.networks[other.network])),
    );
    say(`${item.id}: ${find("headline").textContent} ${find("conclusion").textContent}`);
  }

  /** How far the prediction can be trusted: its set, and the OOD score. @param {Item} item @param {Prediction} [prediction] */
  showTrust({ error }, prediction) {
    const network = this.chosen();
    const isOod = oodFlag(prediction);
    complain(find("warning"), prediction && isOod && { message: oodWarning(prediction, network) });
    find("set-words").textContent = prediction?.label ? setInWords(prediction, network) : error;
    find("ood-words").textContent = prediction?.label && !isOod ? oodInWords(prediction, network) : "";
  }

  /** @param {Prediction} [prediction] */
  showMeasured(prediction) {
    const rows = measured(prediction);
    find("measured").hidden = !rows.length;
    find("measured-rows").replaceChildren(
      ...rows.map(([name, text]) => make("tr", {}, make("th", { scope: "row", text: name }), make("td", { text }))),
    );
  }

  paint() {
    const { item, picture } = this;
    if (!item) return;
    picture.layers = [];
    if (item.counts) {
      picture.resize({ width: item.counts.width, height: item.counts.height, scale: item.pixelScale });
      const [stretch, colours] = [find("stretch").value, find("colours").value];
      picture.layers.push({ source: painted(item.counts, limits(item.counts), stretch, colours) });
      this.layOver(item, item.counts);
    }
    picture.isLight = find("colours").value === "inverted";
    picture.draw();
    picture.canvas.setAttribute("aria-label", this.described(item));
  }

  /** @param {Item} item @param {Plane} counts */
  layOver(item, counts) {
    const overlay = find("overlay").value;
    const words = find("overlay-words");
    find("opacity-field").hidden = words.hidden = overlay === "nothing";
    if (overlay === "mass") words.textContent = this.layMass(item, counts);
    if (overlay === "saliency") this.laySaliency(item, words);
  }

  /** Lays the mass map over the picture, and puts it in words. @param {Item} item @param {Plane} counts */
  layMass(item, counts) {
    const network = this.chosen();
    const map = this.prediction?.map;
    if (!map) return `${network.name} predicts no mass map. Choose another network.`;
    this.picture.layers.push({
      source: veiled(map, MASS_COLOUR, Math.max(PLAIN_MSUN, greatest(map))),
      share: mapShare(network, item.pixelScale, counts.width),
      alpha: Number(find("opacity").value),
    });
    return massInWords(map, network);
  }

  /** @param {Item} item @param {HTMLElement} words */
  async laySaliency(item, words) {
    const { prediction } = this;
    if (!prediction?.label) return (words.textContent = "There is no prediction that a saliency map could explain.");
    if (prediction.saliency) {
      this.picture.layers.push({
        source: veiled(prediction.saliency, SALIENCY_COLOUR, 1),
        alpha: Number(find("opacity").value),
      });
      return (words.textContent = `In green: the pixels that count for ${named(prediction.label)} in ${prediction.network}. They show where its evidence lies, not that it is right.`);
    }
    words.textContent = "Computing the saliency map: a few seconds the first time …";
    if (this.pending.has(prediction)) return;
    this.pending.add(prediction);
    await this.fetchSaliency(item);
    this.pending.delete(prediction);
    if (this.prediction === prediction && prediction.saliency) this.paint();
  }

  /** @param {Item} item */
  described(item) {
    const { prediction } = this;
    if (!item.counts) return `No picture of ${item.id}`;
    const look = `${find("stretch").selectedOptions[0].text} stretch, ${find("colours").selectedOptions[0].text}`;
    const over = find("overlay").value === "nothing" ? "" : ` ${find("overlay-words").textContent}`;
    const label = prediction?.label;
    const words = label ? ` ${prediction.network} predicts ${label}, ${percent(prediction.probs[label])}.` : "";
    return `${item.id}: ${item.counts.width} by ${item.counts.height} pixels, ${look}.${words}${over}`;
  }

  /** Says what lies under the pointer. @param {PointerEvent} event */
  read(event) {
    const counts = this.item?.counts;
    if (!counts) return;
    const { u, v } = this.picture.placeAt(event.offsetX, event.offsetY);
    const [column, row] = [Math.floor(u), Math.floor(v)];
    if (column < 0 || row < 0 || column >= counts.width || row >= counts.height) return;
    const level = counts.values[row * counts.width + column];
    const value = this.item?.hasNoise ? `signal to noise ${signed(level, 1)}` : `${level} counts above the least`;
    const { x, y } = this.picture.skyAt(event.offsetX, event.offsetY);
    const place = this.picture.size.scale ? `x ${signed(x, 2)}″, y ${signed(y, 2)}″` : `column ${column}, row ${row}`;
    find("readout").textContent = `${place}: ${value}`;
  }
}

/** @param {Item} item @param {Prediction | undefined} prediction @param {string} network */
function headline(item, prediction, network) {
  if (item.error) return ["No network can use this image."];
  if (!prediction?.label) return [prediction?.error || `${network} made no prediction for this image.`];
  const { label, probs } = prediction;
  return [chip(label), ` ${MEANINGS[label] ?? label}, ${percent(probs[label])}`];
}

/** @param {Prediction} prediction @param {Network} network */
function comparisonRow(prediction, network) {
  const { label, ood_score: score } = prediction;
  const limit = network.ood_threshold?.toFixed(2) ?? "–";
  return make(
    "tr",
    {},
    make("th", { scope: "row", text: prediction.network }),
    make("td", { class: "words" }, label ? chip(label) : "–", label ? ` ${percent(prediction.probs[label])}` : ""),
    make("td", { class: "words", text: setInBraces(prediction) }),
    make("td", {}, oodTag(prediction), score === null ? " –" : ` ${signed(score, 2)} (${limit})`),
    make("td", { text: milliseconds(prediction.latency_ms) }),
  );
}

/**
 * The share of an image's width that a network maps.
 * @param {Network} network
 * @param {number | null} scale arcsec a pixel of the image
 * @param {number} width pixels
 */
function mapShare(network, scale, width) {
  const zoom = network.pixel_scale && scale ? network.pixel_scale / scale : 1;
  return (network.side * zoom) / width;
}

/** A mass map in words: all of it, and where it peaks. @param {Plane} map @param {Network} network */
export function massInWords(map, network) {
  const total = Array.from(map.values).reduce((sum, value) => sum + value, 0);
  const peak = map.values.indexOf(greatest(map));
  const cell = network.map?.cell_arcsec ?? 0;
  const place = (/** @type {number} */ at, /** @type {number} */ side) => `${signed((at - (side - 1) / 2) * cell, 1)}″`;
  const where = `x ${place(peak % map.width, map.width)}, y ${place(Math.floor(peak / map.width), map.height)}`;
  return `${network.name} predicts ${mass(total)} M☉ of substructure in all, the most of it, ${mass(map.values[peak])} M☉ in a cell of ${cell.toFixed(2)}″, at ${where}.`;
}
