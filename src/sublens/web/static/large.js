/** One image shown large, with what the networks say of it. */

import { bars, chip, conclusion, MEANINGS, named, setInBraces, setInWords, strangeInWords } from "./answers.js";
import { greatest, limits, painted, veiled } from "./colours.js";
import { complain, fillSelect, find, make, say } from "./dom.js";
import { mass, milliseconds, percent, signed } from "./numbers.js";
import { CORRECTIONS, keepOpinion, opinion, whenOpinionsChange } from "./opinions.js";
import { makeMovable, Picture } from "./picture.js";

const MASS_COLOUR = [0, 205, 255];
const SALIENCY_COLOUR = [80, 255, 120];

/** Msun in a cell, from which on a map is drawn in full colour: what is hardly there should not look like much. */
export const PLAIN_MSUN = 1e9;

export class Large {
  /**
   * @param {object} options
   * @param {Record<string, object>} options.networks by name, the first of which gave the image its frame
   * @param {(item: object, change: object) => void} options.askAgain with another extension or pixel scale
   * @param {(item: object) => Promise<void>} options.fetchSaliency fills in the chosen network's saliency
   * @param {() => string} options.chosen the network that is followed
   */
  constructor(options) {
    Object.assign(this, options);
    this.item = null;
    this.picture = new Picture(find("large"));
    this.picture.whenMoved = () => (find("zoom").textContent = `${Math.round(100 * this.picture.zoom)} %`);
    makeMovable(this.picture, find("large-stage"));
    this.wireLook();
    this.wireQuestions();
    this.wireOpinion();
  }

  wireLook() {
    for (const id of ["stretch", "colours", "overlay", "opacity"])
      find(id).addEventListener("input", () => this.paint());
    find("zoom-in").addEventListener("click", () => this.picture.zoomBy(1.5));
    find("zoom-out").addEventListener("click", () => this.picture.zoomBy(1 / 1.5));
    find("zoom-fit").addEventListener("click", () => this.picture.zoomBy(0));
    find("large").addEventListener("pointermove", (event) => this.read(event));
    find("large").addEventListener("pointerleave", () => (find("readout").textContent = "\u00a0"));
  }

  wireQuestions() {
    find("hdu").addEventListener("change", () => this.askAgain(this.item, { hdu: Number(find("hdu").value) }));
    find("scale-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.askAgain(this.item, { pixelScale: Number(find("scale").value) });
    });
  }

  wireOpinion() {
    fillSelect(find("correction"), CORRECTIONS);
    find("correction").addEventListener("change", (event) =>
      keepOpinion(this.item.id, { correction: event.target.value }),
    );
    find("comment").addEventListener("change", (event) => keepOpinion(this.item.id, { comment: event.target.value }));
    whenOpinionsChange((id) => id === this.item?.id && this.showOpinion());
  }

  get judgement() {
    return this.item?.predictions[this.chosen()];
  }

  show(item) {
    this.item = item;
    if (!item) return;
    find("large-name").textContent = item.id;
    const veil = find("large-veil");
    veil.hidden = Boolean(item.counts);
    veil.textContent = item.error || "Fetching the image again …";
    this.showQuestions();
    this.showOpinion();
    this.showAnswer();
    this.paint();
  }

  showQuestions() {
    const { extensions, job } = this.item;
    find("hdu-field").hidden = extensions.length < 2;
    fillSelect(
      find("hdu"),
      extensions.map(({ number, name, shape }) => [number, `${number} ${name} ${shape.join(" × ")}`]),
    );
    find("hdu").value = String(job.hdu ?? extensions[0]?.number ?? "");
    find("scale-form").hidden = !this.item.counts || (this.item.isScaleKnown && !job.pixelScale);
    find("scale").value = job.pixelScale ?? "";
  }

  showOpinion() {
    find("correction").value = opinion(this.item.id).correction;
    find("comment").value = opinion(this.item.id).comment;
  }

  showAnswer() {
    const { item, judgement } = this;
    const network = this.networks[this.chosen()];
    const predictions = Object.values(item.predictions);
    const isJudged = Boolean(judgement?.label);
    find("headline").replaceChildren(...headline(item, judgement, this.chosen()));
    complain(find("warning"), judgement?.ood && { message: strangeInWords(judgement, network) });
    find("set-words").textContent = isJudged ? setInWords(judgement, network) : item.error;
    const notes = judgement?.notes ?? [];
    find("notes").hidden = !notes.length;
    find("notes").replaceChildren(...notes.map((text) => make("li", { text })));
    find("conclusion").textContent = conclusion(predictions);
    find("judge-bars").replaceChildren(...predictions.map((one) => bars(one, one === judgement)));
    find("comparison").replaceChildren(...predictions.map((one) => comparisonRow(one, this.networks[one.network])));
    say(`${item.id}: ${find("headline").textContent} ${find("conclusion").textContent}`);
  }

  paint() {
    const { item, picture } = this;
    if (!item) return;
    picture.layers = [];
    if (item.counts) {
      const [first] = Object.values(this.networks);
      const scale = item.pixelScale === null ? null : (first.pixel_scale ?? item.pixelScale);
      picture.resize({ width: item.counts.width, height: item.counts.height, scale });
      const [stretch, colours] = [find("stretch").value, find("colours").value];
      picture.layers.push({ source: painted(item.counts, limits(item.counts), stretch, colours) });
      this.layOver();
    }
    picture.isLight = find("colours").value === "inverted";
    picture.draw();
    picture.canvas.setAttribute("aria-label", this.described());
  }

  layOver() {
    const wanted = find("overlay").value;
    const words = find("overlay-words");
    find("opacity-field").hidden = words.hidden = wanted === "nothing";
    if (wanted === "mass") this.layMass(words);
    if (wanted === "saliency") this.laySaliency(words);
  }

  layMass(words) {
    const { judgement, picture, item } = this;
    if (!judgement?.map)
      return (words.textContent = `${this.chosen()} draws no map of the mass. Choose another network.`);
    const network = this.networks[this.chosen()];
    const share = mapShare(network, Object.values(this.networks)[0], item.counts.width);
    picture.layers.push({
      source: veiled(judgement.map, MASS_COLOUR, Math.max(PLAIN_MSUN, greatest(judgement.map))),
      share,
      alpha: Number(find("opacity").value),
    });
    words.textContent = massInWords(judgement.map, network);
  }

  async laySaliency(words) {
    const { item, judgement } = this;
    if (!judgement?.label) return (words.textContent = "There is no answer that anything could speak for.");
    if (judgement.saliency) {
      this.picture.layers.push({
        source: veiled(judgement.saliency, SALIENCY_COLOUR, 1),
        alpha: Number(find("opacity").value),
      });
      return (words.textContent = `In green: what speaks for ${named(judgement.label)}, says ${judgement.network}. It shows where the network looks, not that it is right.`);
    }
    words.textContent = "Asking the network what it looks at: a few seconds the first time …";
    if (judgement.isAsked) return;
    judgement.isAsked = true;
    await this.fetchSaliency(item);
    judgement.isAsked = false;
    if (this.item === item && this.judgement?.saliency) this.paint();
  }

  described() {
    const { item, judgement } = this;
    if (!item.counts) return `No picture of ${item.id}`;
    const look = `${find("stretch").selectedOptions[0].text} stretch, ${find("colours").selectedOptions[0].text}`;
    const over = find("overlay").value === "nothing" ? "" : ` ${find("overlay-words").textContent}`;
    const says = judgement?.label
      ? ` ${judgement.network} says ${judgement.label}, ${percent(judgement.probs[judgement.label])}.`
      : "";
    return `${item.id}: ${item.counts.width} by ${item.counts.height} pixels, ${look}.${says}${over}`;
  }

  /** Says what lies under the pointer. */
  read(event) {
    const counts = this.item?.counts;
    if (!counts) return;
    const { u, v } = this.picture.placeAt(event.offsetX, event.offsetY);
    const [column, row] = [Math.floor(u), Math.floor(v)];
    if (column < 0 || row < 0 || column >= counts.width || row >= counts.height) return;
    const value = `${counts.values[row * counts.width + column]} counts above the least`;
    const { x, y } = this.picture.skyAt(event.offsetX, event.offsetY);
    const place = this.picture.size.scale ? `x ${signed(x, 2)}″, y ${signed(y, 2)}″` : `column ${column}, row ${row}`;
    find("readout").textContent = `${place}: ${value}`;
  }
}

function headline(item, judgement, network) {
  if (item.error) return ["This image could not be judged."];
  if (!judgement?.label) return [judgement?.error || `${network} has not judged this image.`];
  return [
    chip(judgement.label),
    ` ${MEANINGS[judgement.label] ?? judgement.label}, ${percent(judgement.probs[judgement.label])}`,
  ];
}

function comparisonRow(judgement, network) {
  const isJudged = Boolean(judgement.label);
  const hasScore = isJudged && judgement.ood_score !== null;
  const strangeness = hasScore
    ? `${signed(judgement.ood_score, 2)} (${network.ood_threshold?.toFixed(2) ?? "–"})`
    : "–";
  return make(
    "tr",
    {},
    make("th", { scope: "row", text: judgement.network }),
    make(
      "td",
      { class: "words" },
      isJudged ? chip(judgement.label) : "–",
      isJudged ? ` ${percent(judgement.probs[judgement.label])}` : "",
    ),
    make("td", { class: "words", text: setInBraces(judgement.prediction_set) }),
    make("td", {}, judgement.ood ? make("span", { class: "warning-tag", text: "strange" }) : "", ` ${strangeness}`),
    make("td", { text: isJudged ? milliseconds(judgement.latency_ms) : "–" }),
  );
}

/** Of the width of an image in the frame of the network `first`, the share that `network` maps. */
function mapShare(network, first, width) {
  const zoom = network.pixel_scale && first.pixel_scale ? network.pixel_scale / first.pixel_scale : 1;
  return (network.side * zoom) / width;
}

/** What a map of masses shows: all of it, and where it peaks. */
export function massInWords(map, network) {
  const total = map.values.reduce((sum, value) => sum + value, 0);
  const peak = map.values.indexOf(greatest(map));
  const cell = network.map?.cell_arcsec ?? 0;
  const place = (at, side) => `${signed((at - (side - 1) / 2) * cell, 1)}″`;
  const where = `x ${place(peak % map.width, map.width)}, y ${place(Math.floor(peak / map.width), map.height)}`;
  return `${network.name} sees ${mass(total)} M☉ of substructure in all, the most of it, ${mass(map.values[peak])} M☉ in a cell of ${cell.toFixed(2)}″, at ${where}.`;
}
