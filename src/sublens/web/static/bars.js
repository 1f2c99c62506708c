/** Classes and probabilities as elements: chips and bars. */

import { make } from "./dom.js";
import { milliseconds, percent } from "./numbers.js";
import { oodFlag } from "./predictions.js";

/** @typedef {import("./predictions.js").Prediction} Prediction */

/** A class's name on its colour. @param {string} label */
export const chip = (label) => make("span", { class: "chip", "data-class": label, text: label });

/** The mark of an out-of-distribution image, or nothing. @param {Prediction} prediction */
export const oodTag = (prediction) =>
  oodFlag(prediction) ? make("abbr", { class: "warning-tag", title: "out-of-distribution", text: "OOD" }) : "";

/** A network's probabilities as bars with numbers. @param {Prediction} prediction */
export function bars(prediction, isChosen = false) {
  const head = make("h4", { class: "network" }, make("span", { text: prediction.network }));
  const block = make("section", { class: "bars", "data-network": prediction.network, "data-chosen": isChosen }, head);
  if (prediction.error || !prediction.label) {
    block.append(make("p", { class: "soft", text: prediction.error || "This network made no prediction." }));
    return block;
  }
  head.append(oodTag(prediction), make("span", { class: "soft time", text: milliseconds(prediction.latency_ms) }));
  const { probs, label } = prediction;
  block.append(make("ul", {}, ...Object.entries(probs).map(([name, prob]) => bar(name, prob, name === label))));
  return block;
}

/** @param {string} name @param {number} prob @param {boolean} isLabel */
function bar(name, prob, isLabel) {
  const filled = make("span", { class: "fill", "data-class": name });
  filled.style.width = `${100 * prob}%`;
  return make(
    "li",
    { "data-label": isLabel },
    make("span", { class: "class-name", text: name }),
    make("span", { class: "trough", "aria-hidden": "true" }, filled),
    make("span", { class: "number", text: percent(prob) }),
  );
}
