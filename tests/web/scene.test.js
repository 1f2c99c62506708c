import assert from "node:assert/strict";
import { test } from "node:test";

import { DIALS, packed, reading, tidied, turn, unpacked } from "../../src/sublens/web/static/scene.js";

const SCENE = {
  ...{ survey: "common-test-1", seed: 2 ** 40 + 1, theta_e: 1.2345678, halo_q: 0.9, halo_angle: -0.5, gamma: 0.05 },
  ...{ shear_angle: 4, psf_fwhm: 0.1, background: 10, noise_rms: 1, string: null },
  source: { x: 0.1, y: -0.1, r_eff: 0.2, q: 0.5, angle: 1, intensity: 100 },
  subhaloes: [{ x: 1, y: -1, mass_msun: 3e9 }],
};
const dial = (path) => DIALS.flatMap(([, dials]) => dials).find((one) => one.path === path);

test("a link gives back the state that it was made of", () => {
  const state = { scene: tidied(SCENE), network: "é", stretch: "log", colours: "grey" };
  assert.deepEqual(unpacked(packed(state)), state);
  assert.match(packed(state), /^[\w-]+$/);
});

test("a damaged link is refused", () => {
  const link = packed({ scene: tidied(SCENE), network: "a", stretch: "log", colours: "grey" });
  assert.throws(() => unpacked(link.slice(0, 50)));
  assert.throws(() => unpacked(packed({ scene: { ...SCENE, theta_e: "1" }, network: "a" })));
});

test("a tidied scene has five digits, angles within half a turn, and its whole seed", () => {
  const { theta_e, halo_angle, shear_angle, seed } = tidied(SCENE);
  assert.deepEqual([theta_e, seed], [1.2346, SCENE.seed]);
  assert.ok(Math.abs(halo_angle - (Math.PI - 0.5)) < 1e-4 && Math.abs(shear_angle - (4 - Math.PI)) < 1e-4);
});

test("a dial shows an angle in degrees and keeps it in radians", () => {
  const scene = tidied(SCENE);
  turn(scene, dial("source.angle"), 90);
  assert.ok(Math.abs(scene.source.angle - Math.PI / 2) < 1e-4);
  assert.ok(Math.abs(reading(scene, dial("source.angle")) - 90) < 1e-2);
  turn(scene, dial("source.x"), 0.25);
  assert.equal(reading(scene, dial("source.x")), 0.25);
});
