import assert from "node:assert/strict";
import { test } from "node:test";

import * as predictions from "../../src/sublens/web/static/predictions.js";

const { claimedSet, conclusion, measured, oodFlag, oodInWords, oodWarning, setInBraces, setInWords, unknownSurvey } =
  predictions;
const NETWORK = {
  name: "a",
  classes: ["no", "sphere", "vort"],
  coverage: 0.9,
  ood_threshold: 1.2,
  card: { calibration: { false_alarms: 0.01, n: 3000, cutoffs: [0.9, 0.8, 0.7] } },
};
const PREDICTION = {
  network: "a",
  label: "sphere",
  probs: { no: 0.1, sphere: 0.8, vort: 0.1 },
  prediction_set: ["sphere"],
  ood_score: 0.5,
  ood: false,
};
const other = (changes) => ({ ...PREDICTION, network: "b", ...changes });

test("the OOD flag is yes, no or unknown", () => {
  assert.equal(oodFlag(PREDICTION), false);
  assert.equal(oodFlag(other({ ood: true })), true);
  assert.equal(oodFlag(other({ ood: null })), null);
  assert.equal(oodFlag(other({ ood: false, ood_score: null })), null);
  assert.equal(oodFlag(other({ ood: true, ood_score: null })), true);
  assert.equal(oodFlag(undefined), null);
});

test("an unknown OOD flag is neither out-of-distribution nor in-distribution", () => {
  assert.match(oodInWords(PREDICTION, NETWORK), /^In-distribution. Its OOD score is 0.50, the limit 1.20\.$/);
  assert.match(oodInWords(other({ ood_score: null }), NETWORK), /is unknown/);
  assert.match(oodWarning(other({ ood: true, ood_score: 7.02 }), NETWORK), /OOD score is 7.02, the limit 1.20/);
  for (const ood_score of [0.3, null])
    assert.match(oodWarning(other({ ood: true, ood_score }), NETWORK), /too many pixels of the image are missing/);
});

test("no set is claimed for an out-of-distribution image", () => {
  const outside = other({ ood: true });
  assert.equal(claimedSet(outside), null);
  assert.equal(setInBraces(outside), "–");
  assert.match(setInWords(outside, NETWORK), /no prediction set/);
});

test("the empty set differs from no set", () => {
  assert.equal(setInBraces(other({ prediction_set: [] })), "{}");
  assert.match(setInWords(other({ prediction_set: [] }), NETWORK), /is \{\}: no class/);
  assert.equal(setInBraces(other({ prediction_set: null })), "–");
  assert.match(setInWords(other({ prediction_set: null }), NETWORK), /not calibrated/);
});

test("a set is explained by its size", () => {
  assert.match(setInWords(PREDICTION, NETWORK), /The truth is “sphere” nine times in ten/);
  assert.match(setInWords(other({ prediction_set: ["no", "vort"] }), NETWORK), /one of \{no, vort\}/);
  assert.match(setInWords(other({ prediction_set: NETWORK.classes }), NETWORK), /cannot rule out/);
  assert.match(setInWords(PREDICTION, { ...NETWORK, coverage: 0.95 }), /in 95.0 % of images/);
});

test("the promise is for each class where each has a cutoff", () => {
  const former = { ...NETWORK, card: { calibration: { ...NETWORK.card.calibration, cutoffs: [0.9] } } };
  assert.match(setInWords(PREDICTION, NETWORK), /nine times in ten, for each class\.$/);
  assert.match(setInWords(PREDICTION, former), /nine times in ten\.$/);
});

test("networks agree, disagree, or have different classes", () => {
  assert.equal(conclusion([PREDICTION, other({})]), "Both networks agree: many subhaloes (sphere).");
  assert.match(conclusion([PREDICTION, other({ label: "no" })]), /^The networks disagree: a predicts “sphere” and b/);
  const foreign = other({ label: "cdm", probs: { cdm: 0.9, axion: 0.1 } });
  assert.match(conclusion([PREDICTION, foreign]), /^The networks have different classes: a predicts “sphere” and b/);
});

test("a network without a prediction has no say in the conclusion", () => {
  const none = other({ label: null, probs: {} });
  assert.equal(conclusion([PREDICTION, none]), "a predicts many subhaloes (sphere).");
  assert.match(conclusion([none]), /^No network/);
});

test("the conclusion names the networks for which the image is out-of-distribution", () =>
  assert.match(conclusion([PREDICTION, other({ ood: true })]), /out-of-distribution for b\.$/));

test("the best network of the first one's survey is followed, and one without scores is none better", () => {
  const data = { name: "common-test-1" };
  const networks = [
    { name: "a", scores: [], data },
    { name: "b", scores: [{ auc: 0.9 }], data },
    { name: "c", scores: [{ auc: 0.8 }], data },
    { name: "d", scores: [{ auc: 0.99 }], data: { name: "hst-acs" } },
  ];
  assert.equal(predictions.best(networks), "b");
});

test("what a network measures is given with its deviation, the rest is left out", () => {
  assert.deepEqual(measured(PREDICTION), []);
  assert.deepEqual(measured(undefined), []);
  const lens = { theta_e: 1.234, theta_e_sigma: 0.051, position_angle: 30.4, position_angle_sigma: 4.2, n_masked: 0 };
  assert.deepEqual(measured(other({ ...lens, limit_msun: 3e9, noise: "map" })), [
    ["Einstein radius", "1.23″ ± 0.05″"],
    ["Position angle from x", "30° ± 4°"],
    ["Detection limit", "3.0 × 10⁹ M☉, found nine times in ten on the arc"],
    ["Noise", "map"],
    ["Masked pixels", "0"],
  ]);
});

test("a survey that networks do not know is named with them", () => {
  const networks = ["a", "b"].map((name) => ({ ...NETWORK, name, data: { name: "common-test-1" } }));
  assert.equal(unknownSurvey([PREDICTION, other({})], networks, "common-test-1"), "");
  const words = "a and b know common-test-1 only: their answers are flagged out of distribution.";
  assert.equal(unknownSurvey([PREDICTION, other({})], networks, "rubin"), words);
  const one = unknownSurvey([PREDICTION, other({ label: null })], networks, "rubin");
  assert.equal(one, "a knows common-test-1 only: its answer is flagged out of distribution.");
  const none = unknownSurvey([other({ label: null })], networks, "hst-acs");
  assert.equal(none, "No network here takes images of hst-acs; each says why.");
});
