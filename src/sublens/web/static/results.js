/** The third view: how good the networks are, how fast, and what they are made of. */

import { json } from "./api.js";
import { complain, find, make, say } from "./dom.js";
import { many, milliseconds, percent, seconds } from "./numbers.js";
import { isByClass } from "./predictions.js";

/**
 * @typedef {import("./predictions.js").Network} Network
 * @typedef {import("./predictions.js").Score} Score
 */

/** @param {import("./api.js").ServiceDescription} service */
export function startResults({ networks, report }) {
  find("score-rows").replaceChildren(...networks.flatMap(scoreRows));
  find("speed-rows").replaceChildren(...networks.map(speedRow));
  find("cards").replaceChildren(...networks.map(card));
  if (report)
    find("report").replaceChildren(
      make("iframe", { src: "/report", sandbox: "allow-scripts", title: "Report on the networks", loading: "lazy" }),
    );
  else {
    const how = [
      "This service was started without one. Write a report with ",
      make("code", { text: "sublens compare" }),
      " and show it here with ",
      make("code", { text: "sublens serve --report comparison/report.html" }),
      ".",
    ];
    find("report").replaceChildren(make("p", { class: "soft" }, ...how));
  }
}

/** The score of the run itself, then the first of each other track. @param {Score[]} scores */
function bestOfEach(scores) {
  const best = /** @type {Map<string, Score>} */ (new Map());
  for (const score of scores) if (!best.has(score.track)) best.set(score.track, score);
  return [...best.values()];
}

/** @param {Network} network */
function scoreRows(network) {
  const best = bestOfEach(network.scores);
  const name = () => make("th", { scope: "row", text: network.name });
  if (!best.length)
    return [
      make(
        "tr",
        {},
        name(),
        make("td", { colspan: 6, class: "words soft", text: "Not measured yet: sublens evaluate does it." }),
      ),
    ];
  return best.map((score) => make("tr", {}, name(), ...scoreCells(score, network.data.name)));
}

/** @param {Score} score @param {string} survey */
function scoreCells({ track, auc, auc_low: low, auc_high: high, accuracy, loss, images, n }, survey) {
  return [
    make("td", {}, make("b", { text: auc.toFixed(4) }), ` [${low.toFixed(4)}, ${high.toFixed(4)}]`),
    make("td", { class: "words", text: `${survey}, ${track}` }),
    make("td", { text: percent(accuracy) }),
    make("td", { text: loss.toFixed(3) }),
    make("td", { text: many(images) }),
    make("td", { text: many(n) }),
  ];
}

// --- speed ---

/** @param {Network} network */
function speedRow({ name }) {
  const cells = Array.from({ length: 4 }, () => make("td", { text: "–" }));
  const button = make("button", { type: "button", text: "Measure", "aria-label": `Measure ${name} on this machine` });
  button.addEventListener("click", () => measure(name, cells, button));
  return make(
    "tr",
    { "data-network": name },
    make("th", { scope: "row", text: name }),
    ...cells,
    make("td", {}, button),
  );
}

/** @param {string} name @param {HTMLElement[]} cells @param {HTMLButtonElement} button */
async function measure(name, cells, button) {
  button.disabled = true;
  button.textContent = "Measuring …";
  complain(find("results-problem"), null);
  try {
    const speed = await json("/v1/benchmark", { query: [["network", name]], body: {} });
    const words = [
      milliseconds(speed.one_ms),
      `${many(speed.one_per_s)} a second`,
      `${many(speed.batch_per_s)} a second, by ${speed.batch}`,
      speed.threads,
    ];
    words.forEach((text, i) => (cells[i].textContent = text));
    say(`${name}: ${words[1]} one by one, ${words[2]}.`);
  } catch (error) {
    complain(find("results-problem"), error);
  }
  button.disabled = false;
  button.textContent = "Measure again";
}

// --- cards ---

/** @param {Network} network */
function card(network) {
  const best = network.scores[0];
  const summary = make(
    "summary",
    { text: network.name },
    make("span", { class: "soft", text: best ? `AUC ${best.auc.toFixed(4)} on ${network.data.name}` : "not measured" }),
  );
  const facts = make(
    "div",
    { class: "facts" },
    .../** @type {[string, Record<string, any>][]} */ ([
      ["Input and output", shapeFacts(network)],
      ["Calibration", calibrationFacts(network)],
      ["Training", trainingFacts(network)],
      ["Data", network.data],
      ["Versions", network.versions],
      ["Machine", network.machine],
    ]).map(([title, rows]) => make("div", {}, make("h3", { text: title }), list(rows))),
  );
  const raw = make(
    "details",
    {},
    make("summary", { text: "The whole card, as JSON" }),
    make("pre", {
      tabindex: "0",
      role: "region",
      "aria-label": `Card of ${network.name}`,
      text: JSON.stringify(network.card, null, 1),
    }),
  );
  return make("details", { "data-network": network.name }, summary, facts, raw);
}

/** @param {Record<string, any>} rows */
const list = (rows) =>
  make(
    "dl",
    {},
    ...Object.entries(rows ?? {}).flatMap(([name, value]) => [
      make("dt", { text: name.replaceAll("_", " ") }),
      make("dd", { text: inWords(value) }),
    ]),
  );

/** @param {any} value */
function inWords(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number") return Number.isInteger(value) ? many(value) : String(Number(value.toPrecision(5)));
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

/** @param {Network} network */
function shapeFacts({ bundle, classes, image_shape: shape, side, pixel_scale: scale, map }) {
  return {
    bundle,
    classes: classes.join(", "),
    images: `${shape.join(" × ")} pixels${scale ? ` of ${Number(scale.toPrecision(4))}″` : ""}, of which the central ${side} are used`,
    map: map ? `${map.n_cells} × ${map.n_cells} cells of ${map.cell_arcsec.toFixed(2)}″` : "none",
  };
}

/** @param {Network} network */
function calibrationFacts(network) {
  const { temperature, coverage, ood_threshold: threshold } = network;
  const { calibration } = network.card;
  const images = isByClass(network) ? "the images of each class" : "images";
  if (coverage === null) return { calibrated: "no" };
  return {
    temperature,
    "sets contain the truth": `in ${percent(coverage)} of ${images}`,
    "out-of-distribution above": threshold === null ? "–" : threshold.toFixed(2),
    "false alarms": calibration && threshold !== null ? `at most ${percent(calibration.false_alarms)} of ${images}` : "–",
    "calibrated on": `${(calibration?.n ?? 0).toLocaleString("en")} images`,
  };
}

/** @param {Network} network */
function trainingFacts({ training }) {
  const facts = { ...training };
  if (facts.seconds) facts.seconds = seconds(facts.seconds);
  return Object.fromEntries(Object.entries(facts).map(([name, value]) => [name === "seconds" ? "time" : name, value]));
}
