/** The service: requests, its errors in words, and its arrays. */

const KEY = "sublens-key";
const MOST_RETRIES = 20;

/** What went wrong: `message` says what we got, `need` what is needed, `next` what to do. */
export class Problem extends Error {
  constructor({ status = 0, detail, title, need = "", next = "" }) {
    super(detail || title || `The service answered ${status}.`);
    Object.assign(this, { name: "Problem", status, need, next });
  }
}

let askForKey = async () => {};

/** @param {() => Promise<void>} ask asks the person for a key, keeps it by `keepKey`, and then resolves. */
export const whenKeyIsNeeded = (ask) => (askForKey = ask);

let key = "";
try {
  key = sessionStorage.getItem(KEY) ?? "";
} catch {
  // A browser that keeps nothing asks again after a reload.
}

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
 * @param {{query?: [string, string | number][], body?: BodyInit | object, signal?: AbortSignal}} [options]
 * @returns {Promise<Response>}
 */
export async function request(path, { query = [], body, signal } = {}) {
  const asked = query.length
    ? `${path}?${new URLSearchParams(query.map(([name, value]) => [name, String(value)]))}`
    : path;
  for (let attempt = 0; ; attempt++) {
    const response = await sent(asked, body, signal);
    if (response.ok) return response;
    if (response.status === 401) await askForKey();
    else if (response.status === 503 && attempt < MOST_RETRIES) await pause(retryAfter(response), signal);
    else throw await problem(response);
  }
}

/** The JSON that a request is answered with. */
export const json = async (path, options) => (await request(path, options)).json();

async function sent(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const isPlain = body !== undefined && Object.getPrototypeOf(body) === Object.prototype;
  if (isPlain) headers["Content-Type"] = "application/json";
  else if (body) headers["Content-Type"] = "application/octet-stream";
  const method = body === undefined ? "GET" : "POST";
  try {
    return await fetch(path, { method, headers, body: isPlain ? JSON.stringify(body) : body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({
      detail: "The service did not answer.",
      next: "Look whether sublens serve is still running, start it again if not, and try once more.",
    });
  }
}

const retryAfter = (response) => 1000 * (Number(response.headers.get("Retry-After")) || 1);

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

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
 * @param {{dtype: string, shape: [number, number], data: string}} array
 * @returns {Plane}
 */
export function plane({ dtype, shape, data }) {
  const text = atob(data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const Kind = dtype === "uint16" ? Uint16Array : Float32Array; // both little-endian, as every browser's machine is
  return { values: new Kind(bytes.buffer), height: shape[0], width: shape[1] };
}

/** The lines of an NDJSON answer, each as soon as it is there. */
export async function* lines(response) {
  let rest = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) if (part.trim()) yield JSON.parse(part);
  }
  if (rest.trim()) yield JSON.parse(rest);
}
