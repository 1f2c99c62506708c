import assert from "node:assert/strict";
import { test } from "node:test";

import {
  choices,
  correct,
  correctionOf,
  forget,
  keyOf,
  whenCorrected,
} from "../../src/sublens/web/static/corrections.js";

const FILE = { size: 10, lastModified: 1 };
const values = (...options) => choices(...options).map(([value]) => value);

test("a correction can be each class of the network, or unsure", () => {
  assert.deepEqual(values(["cdm", "axion"]), ["", "cdm", "axion", "unsure"]);
  assert.deepEqual(values(["cdm", "unsure"]), ["", "cdm", "unsure"]);
});

test("a correction made beside a network of other classes stays a choice", () => {
  assert.deepEqual(values(["cdm"], "vort"), ["", "cdm", "unsure", "vort"]);
  assert.deepEqual(values(["cdm"], "cdm"), ["", "cdm", "unsure"]);
});

test("another file of the same name is another image, and so is another extension", () => {
  const keys = [keyOf("a", FILE, 0), keyOf("a", FILE, 1), keyOf("a", { ...FILE, size: 11 }, 0), keyOf("b", FILE, 0)];
  keys.push(keyOf("a", { ...FILE, lastModified: 2 }, 0));
  assert.equal(new Set(keys).size, keys.length);
  assert.equal(keyOf("a", { ...FILE }, 0), keys[0]);
});

test("a correction and a comment are kept beside each other until they are forgotten", () => {
  const keys = [];
  whenCorrected((key) => keys.push(key));
  correct("a", { correction: "vort" });
  correct("a", { comment: "long" });
  correct("b", { comment: "other" });
  assert.deepEqual(correctionOf("a"), { correction: "vort", comment: "long" });
  forget(["a"]);
  assert.deepEqual(correctionOf("a"), { correction: "", comment: "" });
  assert.equal(correctionOf("b").comment, "other");
  assert.deepEqual(keys, ["a", "a", "b"]);
});
