/** The first view: files in, answers out. */

import { json, plane, Problem, request } from "./api.js";
import { best } from "./answers.js";
import { Catalogue, record } from "./catalogue.js";
import { limits, STRETCHES } from "./colours.js";
import { complain, fillSelect, find, save, say } from "./dom.js";
import { examples } from "./example.js";
import { chosenFiles, droppedFiles } from "./files.js";
import { Large } from "./large.js";
import { many, seconds } from "./numbers.js";
import { Queue } from "./queue.js";

const THUMB = 40;
const MOST_IN_MEMORY = 3000;

/** @param {object} service the answer of /v1/networks */
export function startJudge({ networks, formats }) {
  const byName = Object.fromEntries(networks.map((network) => [network.name, network]));
  const chosen = () => find("judge-network").value;
  const catalogue = new Catalogue({ classes: networks[0].classes, whenSelected: (item) => select(item) });
  const large = new Large({ networks: byName, chosen, askAgain, fetchSaliency });
  const taken = new Set(); // paths
  const queue = new Queue((job, signal) => judge(job, signal), showProgress);

  fillSelect(
    find("judge-network"),
    networks.map(({ name }) => [name, name]),
  );
  find("judge-network").value = best(networks);
  catalogue.follow(chosen());
  find("formats").textContent =
    `Reads ${formats.join(", ")}. Files go to the service that this page came from, and nowhere else.`;

  async function judge(job, signal) {
    try {
      const answer = await ask(job, signal);
      catalogue.put(
        job,
        answer.images.map((image) => item(job, image, answer.extensions)),
      );
      if (answer.is_cut)
        complain(find("judge-problem"), {
          message: `${job.path}: only its first ${answer.images.length} images were judged.`,
          next: "Save the rest as a file of its own, or judge it with sublens predict.",
        });
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof Problem)) throw error;
      if (error.status === 0) complain(find("judge-problem"), error); // nothing answers: say so where it is seen
      catalogue.put(job, [failed(job, error)]);
    }
    find("judged").hidden = false;
    find("view-judge").classList.add("has-images");
    large.picture.draw(); // it had no width while it was hidden
    forget();
  }

  async function select(item) {
    large.show(item);
    if (item && !item.counts && !item.error) await refill(item);
  }

  /** What is far from being looked at again keeps only its thumbnail and answers. */
  function forget() {
    for (const old of catalogue.items.slice(0, -MOST_IN_MEMORY)) if (old !== catalogue.selected) old.counts = null;
  }

  async function refill(one) {
    try {
      const { images } = await ask(one.job);
      const found = images.find(({ number }) => number === one.number);
      one.counts = plane(found.counts);
      if (catalogue.selected === one) large.show(one);
    } catch (error) {
      complain(find("judge-problem"), error);
    }
  }

  async function fetchSaliency(one) {
    const name = chosen();
    try {
      const { images } = await ask(one.job, undefined, [
        ["saliency", "true"],
        ["network", name],
      ]);
      const found = images.find(({ number }) => number === one.number)?.predictions[0];
      if (!found?.saliency)
        throw new Problem({
          detail: found?.error || `${name} does not say what speaks for its class.`,
          next: "Choose another network.",
        });
      one.predictions[name].saliency = plane(found.saliency);
    } catch (error) {
      complain(find("judge-problem"), error);
      find("overlay-words").textContent = error.message;
    }
  }

  function askAgain(one, change) {
    Object.assign(one.job, change);
    queue.add([one.job]);
  }

  function add(files, nLeftOut = 0) {
    tellApart(files, taken);
    complain(
      find("judge-problem"),
      nLeftOut && {
        message: `Left out, since the ends of their names are not those of images that can be read here: ${many(nLeftOut)} of the files.`,
      },
    );
    if (files.length) queue.add(files);
  }

  function showProgress({ done, of, perSecond, left }) {
    const isDone = queue.isIdle;
    find("progress").hidden = isDone;
    find("progress-bar").max = of || 1;
    find("progress-bar").value = done;
    const rate = done ? `, ${perSecond.toFixed(1)} a second, about ${seconds(left)} left` : "";
    find("progress-text").textContent = `${many(done)} of ${many(of)} files${rate}`;
    if (isDone && done > 1) say(`${many(done)} files are judged.`);
  }

  wireIntake(add, formats);
  find("stop").addEventListener("click", () => queue.stop());
  find("previous").addEventListener("click", () => catalogue.step(-1));
  find("next").addEventListener("click", () => catalogue.step(1));
  find("judge-network").addEventListener("change", () => {
    catalogue.follow(chosen());
    large.show(catalogue.selected);
  });
  find("clear").addEventListener("click", () => {
    queue.stop();
    catalogue.clear();
    taken.clear();
    find("judged").hidden = true;
    find("view-judge").classList.remove("has-images");
    find("files").focus();
  });
  for (const button of document.querySelectorAll("button.export")) {
    button.addEventListener("click", () => takeAway(catalogue.items, chosen(), button.dataset.format));
  }
}

/** Files are numbered; those of one name, from different folders or chosen twice, also in their name. */
function tellApart(files, taken) {
  for (const job of files) {
    const { path } = job;
    job.order = taken.size;
    for (let n = 2; taken.has(job.path); n++) job.path = `${path} (${n})`;
    taken.add(job.path);
  }
}

const ask = async (job, signal, more = []) =>
  json("/v1/predict", { query: [...questions(job), ...more], body: job.file, signal });

function questions(job) {
  const asked = [["name", job.file.name]];
  if (job.hdu !== undefined) asked.push(["hdu", job.hdu]);
  if (job.pixelScale) asked.push(["pixel_scale", job.pixelScale]);
  return asked;
}

/** @returns {import("./catalogue.js").Item} */
function item(job, image, extensions) {
  const counts = image.counts && plane(image.counts);
  const predictions = image.predictions.map((one) => ({ ...one, map: one.map && plane(one.map), saliency: null }));
  return {
    id: image.number === null ? job.path : `${job.path}#${image.number}`,
    job,
    number: image.number,
    ra: image.ra,
    dec: image.dec,
    error: image.error ?? "",
    counts,
    thumb: counts && thumb(counts),
    pixelScale: image.pixel_scale,
    isScaleKnown: image.is_scale_known,
    extensions,
    predictions: Object.fromEntries(predictions.map((one) => [one.network, one])),
  };
}

function failed(job, error) {
  const words = [error.message, error.need && `Needed: ${error.need}.`, error.next].filter(Boolean).join(" ");
  return {
    id: job.path,
    job,
    number: null,
    error: words,
    counts: null,
    pixelScale: null,
    isScaleKnown: false,
    extensions: [],
    predictions: {},
  };
}

/** A small copy of an image, stretched, 0..255. */
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

function wireIntake(add, formats) {
  for (const id of ["files", "folder"]) {
    find(id).addEventListener("change", (event) => {
      const { jobs, nLeftOut } = chosenFiles(event.target.files, id === "folder" ? formats : null);
      add(jobs, nLeftOut);
      event.target.value = ""; // so that the same file can be chosen again
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
    const { jobs, nLeftOut } = await droppedFiles(event.dataTransfer, formats);
    if (!find("view-judge").hidden) add(jobs, nLeftOut);
  });
  find("example").addEventListener("click", async () => {
    find("example").disabled = true;
    try {
      add(await examples());
    } catch (error) {
      complain(find("judge-problem"), error);
    }
    find("example").disabled = false;
  });
}

async function takeAway(items, network, format) {
  try {
    const rows = items.map((one) => record(one, network));
    const response = await request("/v1/catalogue", { query: [["format", format]], body: { network, rows } });
    const name = /filename="?([^";]+)/.exec(response.headers.get("Content-Disposition") ?? "")?.[1];
    save(await response.blob(), name ?? `sublens.${format}`);
    complain(find("judge-problem"), null);
    say(`The catalogue of ${many(rows.length)} images is saved.`);
  } catch (error) {
    complain(find("judge-problem"), error);
  }
}
