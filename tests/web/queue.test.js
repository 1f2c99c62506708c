import assert from "node:assert/strict";
import { test } from "node:test";

import { Latest } from "../../src/sublens/web/static/latest.js";
import { Queue } from "../../src/sublens/web/static/queue.js";

const turn = () => new Promise(setImmediate);

/** A queue whose jobs end when they are told, and its states. */
function held() {
  const open = new Map();
  const states = [];
  const work = (job, signal) => new Promise((resolve, reject) => open.set(job, { resolve, reject, signal }));
  return { open, states, queue: new Queue(work, (state) => states.push(state)) };
}

test("at most three jobs run at once, in order", async () => {
  const { open, queue } = held();
  queue.add(["a", "b", "c", "d"]);
  assert.deepEqual([...open.keys()], ["a", "b", "c"]);
  open.get("b").resolve();
  await turn();
  assert.deepEqual([...open.keys()], ["a", "b", "c", "d"]);
});

test("progress counts what is done of all", async () => {
  const { open, states, queue } = held();
  queue.add(["a", "b"]);
  open.get("a").resolve();
  await turn();
  assert.deepEqual([states.at(-1).done, states.at(-1).of, queue.isIdle], [1, 2, false]);
  open.get("b").resolve();
  await turn();
  assert.deepEqual([states.at(-1).done, states.at(-1).left, queue.isIdle], [2, 0, true]);
});

test("a stopped queue aborts what runs, forgets what waits, and takes new jobs", async () => {
  const { open, queue } = held();
  queue.add(["a", "b", "c", "d"]);
  queue.stop();
  assert.ok(open.get("a").signal.aborted && queue.isIdle && !open.has("d"));
  queue.add(["e"]);
  open.get("a").resolve();
  await turn();
  assert.deepEqual([queue.running, queue.done], [1, 0]);
});

test("a job that fails does not hold up the others", async () => {
  const { open, queue } = held();
  queue.waiting = ["a", "b"];
  const failing = queue.next();
  open.get("a").reject(new Error("a bug"));
  await assert.rejects(failing, /a bug/);
  assert.ok(open.has("b") && queue.running === 1);
});

test("a request aborts the one before", () => {
  const latest = new Latest();
  const [first, second] = [latest.begin(), latest.begin()];
  assert.deepEqual([first.aborted, second.aborted], [true, false]);
  latest.abort();
  assert.ok(second.aborted);
});
