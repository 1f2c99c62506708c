/** What networks say of an image: bars, and plain words. */

import { make } from "./dom.js";
import { listed, milliseconds, percent } from "./numbers.js";

/** The name of the network that is followed until the person chooses: the one with the best score. */
export function best(networks) {
  const auc = ({ scores }) => scores[0]?.auc ?? 0;
  return networks.reduce((top, one) => (auc(one) > auc(top) ? one : top)).name;
}

export const MEANINGS = { no: "no substructure", sphere: "many subhaloes", vort: "a vortex string" };

/** "many subhaloes (sphere)" */
export const named = (label) => (MEANINGS[label] ? `${MEANINGS[label]} (${label})` : label);

/** A class's name on its colour. */
export const chip = (label) => make("span", { class: "chip", "data-class": label, text: label });

/** 0.9 -> "nine times in ten" */
const often = (coverage) =>
  Math.abs(coverage - 0.9) < 1e-6 ? "nine times in ten" : `in ${percent(coverage)} of images`;

/** The prediction set, explained. */
export function setInWords({ prediction_set: set, ood: isStrange }, { coverage, classes }) {
  if (set && isStrange)
    return `Its set is ${setInBraces(set)}, but what a set promises holds for familiar images only.`;
  if (!set) return "This network is not calibrated, so it makes no promise about how often it is right.";
  const promise = often(coverage ?? 0.9);
  if (!set.length) return `No class is probable enough to be held to the promise of being right ${promise}.`;
  if (set.length === classes.length)
    return `It could be any of {${set.join(", ")}}: the network cannot rule out one of them.`;
  if (set.length === 1) return `The truth is “${set[0]}” ${promise}.`;
  return `The truth is one of {${set.join(", ")}} ${promise}.`;
}

/** "{sphere, vort}" */
export const setInBraces = (set) => (set ? `{${set.join(", ")}}` : "–");

/** Why an image is called strange, with score and threshold. */
export function strangeInWords(judgement, network) {
  const compared = network?.ood_threshold ? `, and ${network.ood_threshold.toFixed(2)} is the most that is usual` : "";
  return `Unlike the images the network has learned from: do not trust this answer. Its strangeness is ${judgement.ood_score.toFixed(2)}${compared}.`;
}

/** Do the networks agree? */
export function conclusion(predictions) {
  const able = predictions.filter((judgement) => judgement.label);
  if (!able.length) return "No network could judge this image.";
  const [first] = able;
  const doubts = able.filter((judgement) => judgement.ood).map((judgement) => judgement.network);
  const doubt = doubts.length ? ` But the image is unlike those that ${listed(doubts)} learned from.` : "";
  if (able.length === 1) return `${first.network} says: ${named(first.label)}.${doubt}`;
  if (able.every((judgement) => judgement.label === first.label)) {
    const who = able.length === 2 ? "Both networks" : `All ${able.length} networks`;
    return `${who} agree: ${named(first.label)}.${doubt}`;
  }
  return `The networks disagree: ${listed(able.map((one) => `${one.network} says “${one.label}”`))}.${doubt}`;
}

/** A network's probabilities as bars with numbers. */
export function bars(judgement, isChosen = false) {
  const head = make("h4", { class: "network" }, make("span", { text: judgement.network }));
  const block = make("section", { class: "bars", "data-network": judgement.network, "data-chosen": isChosen }, head);
  if (judgement.error || !judgement.label) {
    block.append(make("p", { class: "soft", text: judgement.error || "This network gave no answer." }));
    return block;
  }
  if (judgement.ood) head.append(make("span", { class: "warning-tag", text: "strange" }));
  head.append(make("span", { class: "soft time", text: milliseconds(judgement.latency_ms) }));
  block.append(
    make("ul", {}, ...Object.entries(judgement.probs).map(([name, prob]) => bar(name, prob, name === judgement.label))),
  );
  return block;
}

function bar(name, prob, isLabel) {
  const filled = make("span", { class: "fill", "data-class": name });
  filled.style.width = `${100 * prob}%`;
  return make(
    "li",
    { "data-label": isLabel },
    make("span", { text: name }),
    make("span", { class: "trough", "aria-hidden": "true" }, filled),
    make("span", { class: "number", text: percent(prob) }),
  );
}
