/** Predictions in plain words. */

import { listed, mass, percent } from "./numbers.js";

/** @typedef {import("./api.js").Plane} Plane */

/**
 * @typedef {object} Network  as the service describes it
 * @property {string} name
 * @property {string} bundle
 * @property {string[]} classes
 * @property {[number, number]} image_shape
 * @property {number | null} pixel_scale  arcsec
 * @property {number} side  pixels of the square that the network uses
 * @property {{n_cells: number, cell_arcsec: number} | null} map
 * @property {number | null} ood_threshold
 * @property {number | null} coverage
 * @property {number | null} temperature
 * @property {Score[]} scores  the best first
 * @property {Record<string, any>} training
 * @property {Record<string, any>} data
 * @property {Record<string, any>} versions
 * @property {Record<string, any>} machine
 * @property {{calibration: {false_alarms: number, n: number, cutoffs: number[]} | null}} card
 *
 * @typedef {object} Score  of one training track
 * @property {string} track
 * @property {number} auc
 * @property {number} auc_low
 * @property {number} auc_high
 * @property {number} accuracy
 * @property {number} loss
 * @property {number} images
 * @property {number} n
 *
 * @typedef {object} Prediction  of one network for one image; without a label where it could make none
 * @property {string} network
 * @property {string | null} error  why there is no label
 * @property {string | null} label
 * @property {Record<string, number>} probs  by class
 * @property {string[] | null} prediction_set
 * @property {number | null} ood_score
 * @property {boolean | null} ood
 * @property {string[]} notes
 * @property {number | null} latency_ms
 * @property {Plane | null} map
 * @property {Plane | null} saliency
 *
 * and where the network gives them:
 * @property {number} [theta_e]  arcsec
 * @property {number} [theta_e_sigma]
 * @property {number} [axis_ratio]
 * @property {number} [axis_ratio_sigma]
 * @property {number} [position_angle]  degrees
 * @property {number} [position_angle_sigma]
 * @property {number} [limit_msun]
 * @property {string} [noise]
 * @property {number} [psf_fwhm]  arcsec
 * @property {number} [n_masked]
 */

/** Numbers that only some networks give, as `Prediction` and rows of the catalogue name them. */
export const MEASURED = /** @type {const} */ ([
  "theta_e",
  "theta_e_sigma",
  "axis_ratio",
  "axis_ratio_sigma",
  "position_angle",
  "position_angle_sigma",
  "limit_msun",
  "noise",
  "psf_fwhm",
  "n_masked",
]);

export const MEANINGS = /** @type {Record<string, string>} */ ({
  no: "no substructure",
  sphere: "many subhaloes",
  vort: "a vortex string",
});

/** "many subhaloes (sphere)" @param {string} label */
export const named = (label) => (label in MEANINGS ? `${MEANINGS[label]} (${label})` : label);

/**
 * The name of the best of the networks that know the first one's survey, followed until the person chooses.
 * @param {Network[]} networks
 */
export function best(networks) {
  const auc = (/** @type {Network} */ { scores }) => scores[0]?.auc ?? 0;
  const alike = networks.filter(({ data }) => data.name === networks[0].data.name);
  return alike.reduce((top, network) => (auc(network) > auc(top) ? network : top)).name;
}

/**
 * Whether an image is out-of-distribution for a network; null where that is unknown, as without an OOD score.
 * @param {Pick<Prediction, "ood" | "ood_score"> | undefined} prediction
 * @returns {boolean | null}
 */
export const oodFlag = (prediction) =>
  prediction?.ood || (Number.isFinite(prediction?.ood_score) ? (prediction?.ood ?? null) : null);

/**
 * The classes of the prediction set; null where none is claimed, as for an out-of-distribution image.
 * @param {Prediction | undefined} prediction
 */
export const claimedSet = (prediction) => (oodFlag(prediction) ? null : (prediction?.prediction_set ?? null));

/** "{sphere, vort}", "{}", or "–" where no set is claimed. @param {Prediction | undefined} prediction */
export function setInBraces(prediction) {
  const set = claimedSet(prediction);
  return set ? `{${set.join(", ")}}` : "–";
}

/** Whether the promises of a network hold for each class, not only over all images. @param {Network} network */
export const isByClass = ({ card: { calibration } }) => (calibration?.cutoffs ?? []).length > 1;

/** "nine times in ten, for each class" @param {Network} network */
const often = (network) =>
  (Math.abs((network.coverage ?? 0.9) - 0.9) < 1e-6
    ? "nine times in ten"
    : `in ${percent(network.coverage ?? 0.9)} of images`) + (isByClass(network) ? ", for each class" : "");

/** The prediction set, explained. @param {Prediction} prediction @param {Network} network */
export function setInWords(prediction, network) {
  if (oodFlag(prediction)) return "There is no prediction set: its promise holds for in-distribution images only.";
  const set = claimedSet(prediction);
  if (!set) return "This network is not calibrated, so it makes no promise about how often it is right.";
  const promise = often(network);
  if (!set.length)
    return `The prediction set is {}: no class is probable enough for the promise to be right ${promise}.`;
  if (set.length === network.classes.length)
    return `It could be any of {${set.join(", ")}}: the network cannot rule out one of them.`;
  if (set.length === 1) return `The truth is “${set[0]}” ${promise}.`;
  return `The truth is one of {${set.join(", ")}} ${promise}.`;
}

/** The warning about an out-of-distribution image. @param {Prediction} prediction @param {Network} network */
export const oodWarning = (prediction, network) =>
  (prediction.ood_score ?? 0) > (network.ood_threshold ?? Infinity)
    ? `Out-of-distribution: unlike the images that the network was trained on, so do not trust this prediction. ${scoreInWords(prediction, network)}.`
    : "Out-of-distribution: too many pixels of the image are missing, so do not trust this prediction.";

/** An OOD flag that is no warning: in-distribution, or unknown. @param {Prediction} prediction @param {Network} network */
export function oodInWords(prediction, network) {
  if (oodFlag(prediction) === null)
    return "This network gives no OOD score, so whether the image is out-of-distribution is unknown.";
  return `In-distribution. ${scoreInWords(prediction, network)}.`;
}

/** @param {Prediction} prediction @param {Network} network */
function scoreInWords({ ood_score: score }, { ood_threshold: limit }) {
  return `Its OOD score is ${score?.toFixed(2)}${limit === null ? "" : `, the limit ${limit.toFixed(2)}`}`;
}

/**
 * Numbers that the network gives beside its classes, each with its name; none from a network of photon counts.
 * @param {Prediction | undefined} prediction
 * @returns {[string, string][]}
 */
export function measured(prediction) {
  const { limit_msun: limit, noise, psf_fwhm: fwhm, n_masked: masked } = prediction ?? {};
  const within = (/** @type {number | undefined} */ value, /** @type {number | undefined} */ sigma, digits = 2, unit = "") =>
    value === undefined ? "" : `${value.toFixed(digits)}${unit} ± ${(sigma ?? 0).toFixed(digits)}${unit}`;
  const rows = /** @type {[string, string][]} */ ([
    ["Einstein radius", within(prediction?.theta_e, prediction?.theta_e_sigma, 2, "″")],
    ["Axis ratio of the mass", within(prediction?.axis_ratio, prediction?.axis_ratio_sigma)],
    ["Position angle from x", within(prediction?.position_angle, prediction?.position_angle_sigma, 0, "°")],
    ["Detection limit", limit === undefined ? "" : `${mass(limit)} M☉, found nine times in ten on the arc`],
    ["Noise", noise ?? ""],
    ["PSF width", fwhm === undefined ? "" : `${fwhm.toFixed(2)}″`],
    ["Masked pixels", masked === undefined ? "" : String(masked)],
  ]);
  return rows.filter(([, text]) => text);
}

/**
 * Which networks do not know a survey, or that none takes its images; empty where all know it.
 * @param {Prediction[]} predictions for an image of the survey
 * @param {Network[]} networks
 * @param {string} survey
 */
export function unknownSurvey(predictions, networks, survey) {
  const made = new Set(predictions.filter(({ label }) => label).map(({ network }) => network));
  if (predictions.length && !made.size) return `No network here takes images of ${survey}; each says why.`;
  const foreign = networks.filter(({ name, data }) => made.has(name) && data.name !== survey);
  const known = [...new Set(foreign.map(({ data }) => data.name))];
  const sentences = known.map((trained) => {
    const names = foreign.filter(({ data }) => data.name === trained).map(({ name }) => name);
    const [know, answers] = names.length > 1 ? ["know", "their answers are"] : ["knows", "its answer is"];
    return `${listed(names)} ${know} ${trained} only: ${answers} flagged out of distribution.`;
  });
  return sentences.join(" ");
}

/** Whether the networks agree. @param {Prediction[]} predictions */
export function conclusion(predictions) {
  const made = predictions.filter((prediction) => prediction.label);
  if (!made.length) return "No network could make a prediction for this image.";
  const label = made[0].label ?? "";
  const unsure = made.filter(oodFlag).map(({ network }) => network);
  const doubt = unsure.length ? ` But the image is out-of-distribution for ${listed(unsure)}.` : "";
  if (made.length === 1) return `${made[0].network} predicts ${named(label)}.${doubt}`;
  if (made.every((prediction) => prediction.label === label)) {
    const who = made.length === 2 ? "Both networks" : `All ${made.length} networks`;
    return `${who} agree: ${named(label)}.${doubt}`;
  }
  const classes = new Set(made.map(({ probs }) => JSON.stringify(Object.keys(probs).sort())));
  const how = classes.size > 1 ? "The networks have different classes" : "The networks disagree";
  return `${how}: ${listed(made.map((prediction) => `${prediction.network} predicts “${prediction.label}”`))}.${doubt}`;
}
