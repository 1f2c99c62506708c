/** The first view: files in, predictions out. */

import { json, plane, Problem, request } from "./api.js";
import { Catalogue } from "./catalogue.js";
import { limits, STRETCHES } from "./colours.js";
import { correctionOf, forget, keyOf } from "./corrections.js";
import { complain, fillSelect, find, save, say } from "./dom.js";
import { examples } from "./example.js";
import { chosenFiles, droppedFiles } from "./files.js";
import { many, seconds } from "./numbers.js";
import { best } from "./predictions.js";
import { Queue } from "./queue.js";
import { record } from "./record.js";
import { Viewer } from "./viewer.js";

/**
 * @typedef {import("./catalogue.js").Item} Item
 * @typedef {import("./files.js").Job} Job
 * @typedef {import("./predictions.js").Prediction} Prediction
 */

const THUMB = 40;
const MOST_IN_MEMORY = 3000;

/** @param {import("./api.js").ServiceDescription} service */
export function startPredict({ networks, formats }) {
  const byName = Object.fromEntries(networks.map((network) => [network.name, network]));
  const chosen = () => byName[find("predict-network").value];
  const catalogue = new Catalogue({ network: byName[best(networks)], whenSelected: (item) => select(item) });
  const viewer = new Viewer({ networks: byName, chosen, askAgain, fetchSaliency });
  const paths = /** @type {Set<string>} */ (new Set()); // of the files so far
  const queue = new Queue(predict, showProgress);

  fillSelect(
    find("predict-network"),
    networks.map(({ name }) => [name, name]),
  );
  find("predict-network").value = best(networks);
  find("formats").textContent =
    `Reads ${formats.join(", ")}. Files go to the service that this page came from, and nowhere else.`;
  for (const card of document.querySelectorAll("#classes li")) {
    const label = card.querySelector(".chip")?.textContent ?? "";
    card.toggleAttribute("hidden", !networks.some(({ classes }) => classes.includes(label)));
  }

  /** @param {Job} job @param {AbortSignal} signal */
  async function predict(job, signal) {
    const { revision } = job;
    const items = await predictedItems(job, signal);
    if (signal.aborted || job.revision !== revision) return; // asked for anew meanwhile, in another way
    catalogue.put(job, items);
    find("predictions").hidden = false;
    find("view-predict").classList.add("has-images");
    viewer.picture.draw(); // it had no width while it was hidden
    dropOldCounts();
  }

  /** @param {Job} job @param {AbortSignal} signal @returns {Promise<Item[]>} */
  async function predictedItems(job, signal) {
    try {
      const answer = await ask(job, signal);
      if (answer.is_cut)
        complain(find("predict-problem"), {
          message: `${job.path}: only its first ${answer.images.length} images have predictions.`,
          next: "Save the rest as a file of its own, or use sublens predict.",
        });
      return answer.images.map((image) => item(job, image, answer.extensions));
    } catch (error) {
      if (signal.aborted) return [];
      if (!(error instanceof Problem)) throw error;
      if (error.status === 0) complain(find("predict-problem"), error); // no service: say so where it is noticed
      return [failed(job, error)];
    }
  }

  /** @param {Item | null} item */
  async function select(item) {
    viewer.show(item);
    if (item && !item.counts && !item.error) await refill(item);
  }

  /** Images far from being shown again keep only their thumbnails and predictions. */
  function dropOldCounts() {
    for (const old of catalogue.items.slice(0, -MOST_IN_MEMORY)) if (old !== catalogue.selected) old.counts = null;
  }

  /** @param {Item} item */
  async function refill(item) {
    try {
      const { images } = await ask(item.job);
      const image = images.find(({ number }) => number === item.number);
      item.counts = image?.counts ? plane(image.counts) : null;
      if (catalogue.selected === item) viewer.show(item);
    } catch (error) {
      if (catalogue.selected === item) complain(find("predict-problem"), error);
    }
  }

  /** @param {Item} item */
  async function fetchSaliency(item) {
    const { name } = chosen();
    try {
      const { images } = await ask(item.job, undefined, [
        ["saliency", "true"],
        ["network", name],
      ]);
      const prediction = images.find(({ number }) => number === item.number)?.predictions[0];
      if (!prediction?.saliency)
        throw new Problem({
          detail: prediction?.error || `${name} gives no saliency map.`,
          next: "Choose another network.",
        });
      item.predictions[name].saliency = plane(prediction.saliency);
    } catch (error) {
      if (catalogue.selected !== item || chosen().name !== name) return; // no longer what is shown
      complain(find("predict-problem"), error);
      find("overlay-words").textContent = /** @type {Error} */ (error).message;
    }
  }

  /** @param {Item} item @param {Partial<Job>} change */
  function askAgain({ job }, change) {
    Object.assign(job, change, { revision: (job.revision ?? 0) + 1 });
    queue.add([job]);
  }

  /** @param {Job[]} files */
  function add(files, nLeftOut = 0) {
    tellApart(files, paths);
    complain(
      find("predict-problem"),
      nLeftOut && {
        message: `Left out, since the ends of their names are not those of images that can be read here: ${many(nLeftOut)} of the files.`,
      },
    );
    if (files.length) queue.add(files);
  }

  /** @param {import("./queue.js").State} state */
  function showProgress({ done, of, perSecond, left }) {
    const isDone = queue.isIdle;
    find("progress").hidden = isDone;
    find("progress-bar").max = of || 1;
    find("progress-bar").value = done;
    const rate = done ? `, ${perSecond.toFixed(1)} a second, about ${seconds(left)} left` : "";
    find("progress-text").textContent = `${many(done)} of ${many(of)} files${rate}`;
    if (isDone && done > 1) say(`${many(done)} files are done.`);
  }

  wireIntake(add, formats);
  find("stop").addEventListener("click", () => queue.stop());
  find("previous").addEventListener("click", () => catalogue.step(-1));
  find("next").addEventListener("click", () => catalogue.step(1));
  find("predict-network").addEventListener("change", () => {
    catalogue.follow(chosen());
    viewer.show(catalogue.selected);
  });
  find("clear").addEventListener("click", () => {
    queue.stop();
    forget(catalogue.items.map(({ key }) => key));
    catalogue.clear();
    paths.clear();
    find("predictions").hidden = true;
    find("view-predict").classList.remove("has-images");
    find("files").focus();
  });
  for (const button of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("button.export"))) {
    button.addEventListener("click", () => download(catalogue.items, chosen().name, button.dataset.format ?? "csv"));
  }
}

/** Numbers the files; those of one name, from different folders or chosen twice, also in their name. */
function tellApart(/** @type {Job[]} */ files, /** @type {Set<string>} */ paths) {
  for (const job of files) {
    const { path } = job;
    job.order = paths.size;
    for (let n = 2; paths.has(job.path); n++) job.path = `${path} (${n})`;
    paths.add(job.path);
  }
}

/**
 * @typedef {import("./api.js").EncodedArray} EncodedArray
 * @typedef {Omit<Prediction, "map" | "saliency"> & {map: EncodedArray | null, saliency: EncodedArray | null}} EncodedPrediction
 *
 * @typedef {object} EncodedImage  one image of an answer
 * @property {number | null} number
 * @property {number | null} ra
 * @property {number | null} dec
 * @property {string | null} error
 * @property {EncodedArray | null} counts
 * @property {string} [pixels]  unit of `counts`, where it is not counts
 * @property {number | null} pixel_scale
 * @property {boolean} is_scale_known
 * @property {EncodedPrediction[]} predictions
 *
 * @typedef {{images: EncodedImage[], extensions: import("./catalogue.js").Extension[], is_cut: boolean}} Answer
 */

/**
 * @param {Job} job
 * @param {AbortSignal} [signal]
 * @param {[string, string][]} [more]
 * @returns {Promise<Answer>}
 */
const ask = async (job, signal, more = []) =>
  json("/v1/predict", { query: [...parameters(job), ...more], body: job.file, signal });

/** @param {Job} job @returns {[string, string | number][]} */
function parameters({ file, hdu, pixelScale }) {
  /** @type {[string, string | number][]} */
  const query = [["name", file.name]];
  if (hdu !== undefined) query.push(["hdu", hdu]);
  if (pixelScale) query.push(["pixel_scale", pixelScale]);
  return query;
}

/** @param {Job} job @param {EncodedImage} image @param {import("./catalogue.js").Extension[]} extensions @returns {Item} */
function item(job, image, extensions) {
  const counts = image.counts && plane(image.counts);
  const id = image.number === null ? job.path : `${job.path}#${image.number}`;
  return {
    id,
    key: keyOf(id, job.file, job.hdu ?? extensions[0]?.number),
    job,
    number: image.number,
    ra: image.ra,
    dec: image.dec,
    error: image.error ?? "",
    counts,
    hasNoise: image.pixels === "signal-to-noise",
    thumb: counts && thumb(counts),
    pixelScale: image.pixel_scale,
    isScaleKnown: image.is_scale_known,
    extensions,
    predictions: Object.fromEntries(
      image.predictions.map((prediction) => [
        prediction.network,
        { ...prediction, map: prediction.map && plane(prediction.map), saliency: null },
      ]),
    ),
  };
}

/** @param {Job} job @param {Problem} error @returns {Item} */
function failed(job, error) {
  const words = [error.message, error.need && `Needed: ${error.need}.`, error.next].filter(Boolean).join(" ");
  return {
    id: job.path,
    key: keyOf(job.path, job.file, job.hdu),
    job,
    number: null,
    ra: null,
    dec: null,
    error: words,
    counts: null,
    hasNoise: false,
    thumb: null,
    pixelScale: null,
    isScaleKnown: false,
    extensions: [],
    predictions: {},
  };
}

/** A small copy of an image, stretched, 0..255. @param {import("./api.js").Plane} counts */
function thumb(counts) {
  const [low, high] = limits(counts);
  const values = new Uint16Array(THUMB * THUMB);
  for (let row = 0; row < THUMB; row++) {
    for (let column = 0; column < THUMB; column++) {
      const from =
        Math.floor((row * counts.height) / THUMB) * counts.width + Math.floor((column * counts.width) / THUMB);
      const share = Math.min(1, Math.max(0, (counts.values[from] - low) / (high - low || 1)));
      values[row * THUMB + column] = 255 * STRETCHES.asinh(share);
    }
  }
  return { values, width: THUMB, height: THUMB };
}

/** @param {(files: Job[], nLeftOut?: number) => void} add @param {string[]} formats */
function wireIntake(add, formats) {
  for (const id of ["files", "folder"]) {
    const input = find(id);
    input.addEventListener("change", () => {
      const { jobs, nLeftOut } = chosenFiles(input.files, id === "folder" ? formats : null);
      add(jobs, nLeftOut);
      input.value = ""; // so that the same file can be chosen again
    });
  }
  const drop = document.body; // a file that misses the box would replace the page otherwise
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    find("drop").classList.add("over");
  });
  drop.addEventListener("dragleave", (event) => event.relatedTarget || find("drop").classList.remove("over"));
  drop.addEventListener("drop", async (event) => {
    event.preventDefault();
    find("drop").classList.remove("over");
    if (!event.dataTransfer) return;
    const { jobs, nLeftOut } = await droppedFiles(event.dataTransfer, formats);
    if (!find("view-predict").hidden) add(jobs, nLeftOut);
  });
  find("example").addEventListener("click", async () => {
    find("example").disabled = true;
    try {
      add(await examples());
    } catch (error) {
      complain(find("predict-problem"), error);
    }
    find("example").disabled = false;
  });
}

/** @param {Item[]} items @param {string} network @param {string} format */
async function download(items, network, format) {
  try {
    const rows = items.map((item) => record(item, network, correctionOf(item.key)));
    const response = await request("/v1/catalogue", { query: [["format", format]], body: { network, rows } });
    const name = /filename="?([^";]+)/.exec(response.headers.get("Content-Disposition") ?? "")?.[1];
    save(await response.blob(), name ?? `sublens.${format}`);
    complain(find("predict-problem"), null);
    say(`The catalogue of ${many(rows.length)} images is saved.`);
  } catch (error) {
    complain(find("predict-problem"), error);
  }
}
