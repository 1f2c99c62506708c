import assert from "node:assert/strict";
import { test } from "node:test";

import { record } from "../../src/sublens/web/static/record.js";

const NONE = { correction: "", comment: "" };
const PREDICTION = {
  label: "cdm",
  probs: { cdm: 1 },
  prediction_set: ["cdm"],
  ood_score: 0.5,
  ood: false,
  notes: ["cut"],
};
const image = (changes) => ({ id: "a#1", job: { path: "a" }, error: "", ra: 1, dec: 2, predictions: {}, ...changes });
const row = (prediction) => record(image({ predictions: { net: prediction } }), "net", NONE);

test("a row holds the prediction of the chosen network, and the correction", () => {
  const item = image({ predictions: { net: PREDICTION, other: { ...PREDICTION, label: "no" } } });
  assert.deepEqual(record(item, "net", { correction: "vort", comment: "long" }), {
    ...{ id: "a#1", path: "a", ...PREDICTION, error: "", ra: 1, dec: 2, correction: "vort", comment: "long" },
  });
});

test("a row holds what the network measures, where it does", () => {
  assert.equal(row({ ...PREDICTION, theta_e: 1.2 }).theta_e, 1.2);
  assert.ok(!("limit_msun" in row({ ...PREDICTION, theta_e: 1.2 })));
});

test("the OOD flag of an image without a prediction is null", () => {
  assert.equal(record(image({ error: "broken" }), "net", NONE).ood, null);
  assert.equal(row({ label: null, error: "small", ood_score: null, ood: false }).ood, null);
});

test("the OOD flag of a network without an OOD score is null", () =>
  assert.equal(row({ ...PREDICTION, ood_score: null }).ood, null));

test("an out-of-distribution image has no set, and the empty set stays one", () => {
  assert.equal(row({ ...PREDICTION, ood: true }).prediction_set, null);
  assert.deepEqual(row({ ...PREDICTION, prediction_set: [] }).prediction_set, []);
});

test("the error of the image goes before that of the network", () => {
  assert.equal(record(image({ error: "broken" }), "net", NONE).error, "broken");
  assert.equal(row({ label: null, error: "small" }).error, "small");
});
