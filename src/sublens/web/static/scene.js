/** A lens as a plain object, the dials that turn it, and the link that holds it. */

/**
 * @typedef {{x: number, y: number, mass_msun: number}} Subhalo  arcsec and Msun
 * @typedef {{x: number, y: number, angle: number, half_length: number, mass_msun: number}} Vortex
 * @typedef {object} Scene  as the service takes it; further numbers are those of the dials
 * @property {string} survey
 * @property {number} seed
 * @property {Subhalo[]} subhaloes
 * @property {Vortex | null} string
 */

export const LEAST_MSUN = 1e6;
export const MOST_MSUN = 1e11;
export const MOST_SUBHALOES = 500;

const DEGREES = 180 / Math.PI;

/** @typedef {{path: string, name: string, unit?: string, low: number, high: number, step: number, isAngle?: boolean}} Dial */

/** @type {[string, Dial[]][]} angles are shown in degrees and kept in radians */
export const DIALS = [
  [
    "Lens",
    [
      { path: "theta_e", name: "Einstein radius", unit: "″", low: 0.3, high: 2.5, step: 0.01 },
      { path: "halo_q", name: "Axis ratio", low: 0.2, high: 1, step: 0.01 },
      { path: "halo_angle", name: "Axis angle", unit: "°", low: 0, high: 180, step: 1, isAngle: true },
      { path: "gamma", name: "Shear", low: 0, high: 0.5, step: 0.005 },
      { path: "shear_angle", name: "Shear angle", unit: "°", low: 0, high: 180, step: 1, isAngle: true },
    ],
  ],
  [
    "Source",
    [
      { path: "source.x", name: "Position x", unit: "″", low: -1, high: 1, step: 0.01 },
      { path: "source.y", name: "Position y", unit: "″", low: -1, high: 1, step: 0.01 },
      { path: "source.r_eff", name: "Size", unit: "″", low: 0.02, high: 1, step: 0.01 },
      { path: "source.q", name: "Axis ratio", low: 0.2, high: 1, step: 0.01 },
      { path: "source.angle", name: "Axis angle", unit: "°", low: 0, high: 180, step: 1, isAngle: true },
      { path: "source.intensity", name: "Brightness", unit: "e⁻", low: 1, high: 500, step: 1 },
    ],
  ],
  [
    "Camera",
    [
      { path: "psf_fwhm", name: "PSF width", unit: "″", low: 0.05, high: 1, step: 0.005 },
      { path: "background", name: "Sky", unit: "e⁻", low: 0, high: 1000, step: 1 },
      { path: "noise_rms", name: "Gaussian noise", unit: "e⁻", low: 0, high: 100, step: 0.5 },
    ],
  ],
];

/** What a dial shows of a scene. @param {Scene} scene @param {Dial} dial @returns {number} */
export function reading(scene, dial) {
  const value = dial.path.split(".").reduce((part, name) => part[name], /** @type {any} */ (scene));
  return dial.isAngle ? value * DEGREES : value;
}

/** Sets what a dial shows. @param {Scene} scene @param {Dial} dial @param {number} value */
export function turn(scene, dial, value) {
  const names = dial.path.split(".");
  const owner = names.slice(0, -1).reduce((part, name) => part[name], /** @type {any} */ (scene));
  owner[names[names.length - 1]] = rounded(dial.isAngle ? value / DEGREES : value);
}

/** Five digits are finer than any picture shows, and keep links short. @param {number} value */
export const rounded = (value) => Number(value.toPrecision(5));

/** Position angles repeat after half a turn. @param {number} angle */
const folded = (angle) => rounded(((angle % Math.PI) + Math.PI) % Math.PI);

/**
 * A scene with every number rounded, so that its link holds it exactly.
 * @param {Scene} scene
 * @returns {Scene}
 */
export function tidied(scene) {
  const copy = JSON.parse(JSON.stringify(scene), (name, value) => {
    if (typeof value !== "number" || name === "seed") return value;
    return name.endsWith("angle") ? folded(value) : rounded(value);
  });
  return copy;
}

/** @typedef {{scene: Scene, network: string, stretch: string, colours: string}} State */

/** A state as compact JSON in base64url; a subhalo is three numbers. @param {State} state */
export function packed(state) {
  const subhaloes = state.scene.subhaloes.map(({ x, y, mass_msun: mass }) => [x, y, mass]);
  const bytes = new TextEncoder().encode(JSON.stringify({ ...state, scene: { ...state.scene, subhaloes } }));
  const text = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  return text.replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

/** The state in a link; throws where it is damaged. @param {string} text @returns {State} */
export function unpacked(text) {
  const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));
  const state = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  state.scene.subhaloes = state.scene.subhaloes.map((/** @type {number[]} */ [x, y, mass]) => ({
    x,
    y,
    mass_msun: mass,
  }));
  for (const [, dials] of DIALS) {
    for (const dial of dials) if (!Number.isFinite(reading(state.scene, dial))) throw new Error(dial.path);
  }
  return state;
}
