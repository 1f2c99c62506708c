/** Simulated images to try the page with, as if they had been chosen as files. */

import { json, plane } from "./api.js";

const SURVEY = "common-test-1";
const MOST_SEED = 1e6;

/** A fresh image of each class. @returns {Promise<import("./files.js").Job[]>} */
export const examples = () => Promise.all(["no", "sphere", "vort"].map(example));

/** @param {string} label */
async function example(label) {
  const seed = Math.floor(Math.random() * MOST_SEED);
  const scene = await json("/v1/scene", {
    query: [
      ["survey", SURVEY],
      ["label", label],
      ["seed", seed],
    ],
  });
  const { counts, pixel_scale: pixelScale } = await json("/v1/simulate", { query: [["network", "none"]], body: scene });
  const name = `example ${seed}, simulated as ${label}.npy`;
  return { path: name, file: new File([npy(plane(counts))], name), pixelScale };
}

/** The bytes of an .npy file, version 1.0: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html @param {import("./api.js").Plane} image */
function npy({ values, height, width }) {
  const words = `{'descr': '<u2', 'fortran_order': False, 'shape': (${height}, ${width}), }`;
  const padded = words.padEnd(Math.ceil((10 + words.length + 1) / 64) * 64 - 11) + "\n";
  const head = new Uint8Array(10 + padded.length);
  head.set([
    0x93,
    ...[..."NUMPY"].map((letter) => letter.charCodeAt(0)),
    1,
    0,
    padded.length & 255,
    padded.length >> 8,
  ]);
  head.set(new TextEncoder().encode(padded), 10);
  return new Blob([head, /** @type {BlobPart} */ (values)]);
}
