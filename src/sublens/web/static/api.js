/** The service: requests, its errors in words, and its arrays. */

const KEY = "sublens-key";
const MOST_RETRIES = 20;

/** What went wrong: `message` says what we got, `need` what is needed, `next` what to do. */
export class Problem extends Error {
  /** @param {{status?: number, detail?: string, title?: string, need?: string, next?: string}} parts */
  constructor({ status = 0, detail, title, need = "", next = "" }) {
    super(detail || title || `The service answered ${status}.`);
    this.name = "Problem";
    this.status = status;
    this.need = need;
    this.next = next;
  }
}

/**
 * @typedef {object} ServiceDescription  the answer of /v1/networks
 * @property {import("./predictions.js").Network[]} networks
 * @property {string[]} formats  ends of file names
 * @property {boolean} report  whether there is one
 * @property {string} version
 *
 * @typedef {object} Options  of a request
 * @property {[string, string | number][]} [query]
 * @property {BodyInit | object} [body]
 * @property {AbortSignal} [signal]
 */

let askForKey = async () => {};

/** @param {() => Promise<void>} ask asks the person for a key, keeps it by `keepKey`, and then resolves. */
export const whenKeyIsNeeded = (ask) => (askForKey = ask);

let key = "";
try {
  key = sessionStorage.getItem(KEY) ?? "";
} catch {
  // A browser that keeps nothing asks again after a reload.
}

/** @param {string} text */
export function keepKey(text) {
  key = text;
  try {
    sessionStorage.setItem(KEY, text);
  } catch {
    // As above.
  }
}

/**
 * One request. A busy service (503) is asked again when it says so, and a missing key (401) is asked for.
 * @param {string} path
 * @param {Options} [options]
 * @returns {Promise<Response>}
 */
export async function request(path, { query = [], body, signal } = {}) {
  const address = query.length
    ? `${path}?${new URLSearchParams(query.map(([name, value]) => [name, String(value)]))}`
    : path;
  for (let attempt = 0; ; attempt++) {
    const response = await sent(address, body, signal);
    if (response.ok) return response;
    if (response.status === 401) await askForKey();
    else if (response.status === 503 && attempt < MOST_RETRIES) await pause(retryAfter(response), signal);
    else throw await problem(response);
  }
}

/**
 * The JSON that a request is answered with.
 * @param {string} path
 * @param {Options} [options]
 * @returns {Promise<any>}
 */
export const json = async (path, options) => (await request(path, options)).json();

/** @param {string} path @param {BodyInit | object | undefined} body @param {AbortSignal} [signal] */
async function sent(path, body, signal) {
  /** @type {Record<string, string>} */
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const isPlain = body !== undefined && Object.getPrototypeOf(body) === Object.prototype;
  if (isPlain) headers["Content-Type"] = "application/json";
  else if (body) headers["Content-Type"] = "application/octet-stream";
  const method = body === undefined ? "GET" : "POST";
  try {
    return await fetch(path, {
      method,
      headers,
      body: isPlain ? JSON.stringify(body) : /** @type {BodyInit | undefined} */ (body),
      signal,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem({
      detail: "The service did not answer.",
      next: "Check that sublens serve is still running, start it again if not, and try once more.",
    });
  }
}

/** Milliseconds to wait before a busy service is asked again. @param {Response} response */
const retryAfter = (response) => 1000 * (Number(response.headers.get("Retry-After")) || 1);

/** @param {number} ms @param {AbortSignal} [signal] @returns {Promise<void>} */
function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

/** @param {Response} response */
async function problem(response) {
  try {
    return new Problem({ ...(await response.json()), status: response.status });
  } catch {
    return new Problem({
      status: response.status,
      title: `The service answered ${response.status} ${response.statusText}.`,
    });
  }
}

/**
 * @typedef {{values: Uint16Array | Float32Array, height: number, width: number}} Plane  rows from the bottom up
 * @typedef {{dtype: string, shape: [number, number], data: string}} EncodedArray
 * @param {EncodedArray} array
 * @returns {Plane}
 */
export function plane({ dtype, shape, data }) {
  const text = atob(data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const Kind = dtype === "uint16" ? Uint16Array : Float32Array; // both little-endian, as every browser's machine is
  return { values: new Kind(bytes.buffer), height: shape[0], width: shape[1] };
}

/** The lines of an NDJSON answer, each as soon as it is there. @param {Response} response */
export async function* lines(response) {
  let rest = "";
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop() ?? "";
    for (const part of parts) if (part.trim()) yield JSON.parse(part);
  }
  if (rest.trim()) yield JSON.parse(rest);
}
