/** Files that were chosen or dropped, as jobs. */

/**
 * @typedef {object} Job  one file
 * @property {string} path
 * @property {File} file
 * @property {number} [order]  its place among the files
 * @property {number} [hdu]
 * @property {number} [pixelScale]  arcsec
 * @property {number} [revision]  how often it was asked for in another way
 *
 * @typedef {{jobs: Job[], nLeftOut: number}} Found
 */

/**
 * @param {Iterable<File>} files
 * @param {string[] | null} formats ends of names to keep; null keeps all, so that the service can say what is wrong
 * @returns {Found}
 */
export function chosenFiles(files, formats) {
  const all = [...files].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
  return kept(all, formats);
}

/**
 * Files, and whole folders, out of a drop.
 * @param {DataTransfer} dropped
 * @param {string[]} formats
 * @returns {Promise<Found>}
 */
export async function droppedFiles(dropped, formats) {
  const entries = [...dropped.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  const hasFolder = entries.some((entry) => entry.isDirectory);
  if (!hasFolder) return chosenFiles(dropped.files, null);
  return kept((await Promise.all(entries.map((entry) => within(entry)))).flat(), formats);
}

/** @param {Job[]} all @param {string[] | null} formats @returns {Found} */
function kept(all, formats) {
  const jobs = all.filter(({ path }) => !formats || formats.some((end) => path.toLowerCase().endsWith(end)));
  jobs.sort((a, b) => a.path.localeCompare(b.path, "en", { numeric: true }));
  return { jobs, nLeftOut: all.length - jobs.length };
}

/** The files in a folder, or the one file. @param {any} entry of a file system @returns {Promise<Job[]>} */
async function within(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ path: entry.fullPath.replace(/^\//, ""), file }];
  }
  const reader = entry.createReader();
  const jobs = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
    if (!some.length) break;
    for (const inner of some) jobs.push(...(await within(inner)));
  }
  return jobs;
}
