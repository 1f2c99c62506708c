/** An image's row of the catalogue, as the service takes it. */

import { claimedSet, MEASURED, oodFlag } from "./predictions.js";

/**
 * @param {Pick<import("./catalogue.js").Item, "id" | "job" | "error" | "ra" | "dec" | "predictions">} item
 * @param {string} network whose prediction it holds
 * @param {import("./corrections.js").Correction} correction
 */
export function record(item, network, correction) {
  const prediction = item.predictions[network];
  return {
    id: item.id,
    path: item.job.path,
    label: prediction?.label ?? "",
    probs: prediction?.probs ?? {},
    prediction_set: claimedSet(prediction),
    ood_score: prediction?.ood_score ?? null,
    ood: oodFlag(prediction),
    notes: prediction?.notes ?? [],
    error: item.error || prediction?.error || "",
    ra: item.ra,
    dec: item.dec,
    ...Object.fromEntries(MEASURED.filter((name) => prediction && name in prediction).map((name) => [name, prediction[name]])),
    ...correction,
  };
}
