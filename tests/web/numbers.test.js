import assert from "node:assert/strict";
import { test } from "node:test";

import * as numbers from "../../src/sublens/web/static/numbers.js";

/** Each function with arguments and the text that they give. */
const TEXTS = {
  mass: [
    [3.2e9, "3.2 × 10⁹"],
    [9.99e9, "1.0 × 10¹⁰"],
    [0.05, "5.0 × 10⁻²"],
    [0, "0"],
  ],
  typed: [
    [3.2e9, "3.2e9"],
    [1e10, "1e10"],
  ],
  percent: [
    [0.5, "50.0 %"],
    [0, "0.0 %"],
    [1, "100.0 %"],
    [0.9996, "> 99.9 %"],
    [0.0004, "< 0.1 %"],
    [undefined, "–"],
    [NaN, "–"],
  ],
  many: [
    [1234, "1,234"],
    [1.5e6, "1.50 million"],
  ],
  milliseconds: [
    [1.34, "1.3 ms"],
    [23.4, "23 ms"],
    [999.6, "1.0 s"],
    [null, "–"],
  ],
  seconds: [
    [0, "1 s"],
    [59.7, "1 min 0 s"],
    [75, "1 min 15 s"],
    [119.6, "2 min 0 s"],
    [3599.6, "1 h 0 min"],
    [8300, "2 h 18 min"],
  ],
  plain: [[12.0400001, "12.04"]],
  listed: [
    [["a"], "a"],
    [["a", "b"], "a and b"],
    [["a", "b", "c"], "a, b and c"],
  ],
};

for (const [name, cases] of Object.entries(TEXTS)) {
  test(`${name} is written as people read it`, () => {
    for (const [value, text] of cases) assert.equal(numbers[name](value), text);
  });
}

test("a negative number has a true minus sign", () => assert.equal(numbers.signed(-1.25, 1), "−1.3"));
