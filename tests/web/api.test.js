import assert from "node:assert/strict";
import { afterEach, test } from "node:test";

import { json, keepKey, lines, plane, Problem, whenKeyIsNeeded } from "../../src/sublens/web/static/api.js";

const original = globalThis.fetch;
afterEach(() => (globalThis.fetch = original));

/** Answers requests with these, one after the other, and lists what was sent. */
function answering(...responses) {
  const requests = [];
  globalThis.fetch = async (path, options) => {
    requests.push({ path, ...options });
    return responses.shift();
  };
  return requests;
}

test("an array is decoded as it was encoded", () => {
  const values = Float32Array.of(1.5, -2, 3, 4, 5, 6);
  const data = Buffer.from(values.buffer).toString("base64");
  assert.deepEqual(plane({ dtype: "float32", shape: [2, 3], data }), { values, height: 2, width: 3 });
  assert.deepEqual([...plane({ dtype: "uint16", shape: [1, 1], data: "AAE=" }).values], [256]);
});

test("a busy service is asked again", async () => {
  const busy = new Response(null, { status: 503, headers: { "Retry-After": "0.001" } });
  const requests = answering(busy, Response.json({ done: true }));
  assert.deepEqual(await json("/v1/a", { query: [["b", 1]] }), { done: true });
  assert.deepEqual(
    requests.map(({ path }) => path),
    ["/v1/a?b=1", "/v1/a?b=1"],
  );
});

test("a missing key is asked for and then sent", async () => {
  whenKeyIsNeeded(async () => keepKey("secret"));
  const requests = answering(new Response(null, { status: 401 }), Response.json({}));
  await json("/v1/a", { body: {} });
  assert.deepEqual(
    requests.map(({ headers }) => headers.Authorization),
    [undefined, "Bearer secret"],
  );
});

test("a refusal says what is needed and what to do", async () => {
  answering(Response.json({ detail: "It is empty.", need: "an image", next: "Send one." }, { status: 422 }));
  const { message, need, next } = await json("/v1/a").catch((error) => error);
  assert.deepEqual([message, need, next], ["It is empty.", "an image", "Send one."]);
});

test("a service that does not answer is a problem without a status", async () => {
  globalThis.fetch = async () => Promise.reject(new TypeError("Failed to fetch"));
  await assert.rejects(json("/v1/a"), (error) => error instanceof Problem && error.status === 0);
});

test("an aborted request ends while it waits for a busy service", async () => {
  answering(new Response(null, { status: 503, headers: { "Retry-After": "60" } }));
  const controller = new AbortController();
  const waiting = json("/v1/a", { signal: controller.signal });
  setImmediate(() => controller.abort());
  await assert.rejects(waiting, { name: "AbortError" });
});

test("lines of JSON are read across the borders of their packets", async () => {
  const packets = ['{"a"', ':1}\n{"a":2}\n', '{"a":3}'].map((text) => new TextEncoder().encode(text));
  const all = [];
  for await (const line of lines(new Response(ReadableStream.from(packets)))) all.push(line.a);
  assert.deepEqual(all, [1, 2, 3]);
});
