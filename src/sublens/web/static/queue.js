/** Files waiting for their predictions, a few at a time. */

const AT_ONCE = 3;

/**
 * @template Job
 * @typedef {(job: Job, signal: AbortSignal) => Promise<void>} Work
 */

/** @typedef {{done: number, of: number, perSecond: number, left: number}} State  left: seconds */

/** @template Job */
export class Queue {
  /**
   * @param {Work<Job>} work
   * @param {(state: State) => void} whenChanged
   */
  constructor(work, whenChanged) {
    this.work = work;
    this.whenChanged = whenChanged;
    /** @type {Job[]} */
    this.waiting = [];
    this.running = 0;
    this.done = 0;
    this.began = 0;
    this.abort = new AbortController();
  }

  reset() {
    this.waiting = [];
    this.running = 0;
    this.done = 0;
    this.began = performance.now();
    this.abort = new AbortController();
  }

  get isIdle() {
    return !this.running && !this.waiting.length;
  }

  /** @param {Job[]} jobs */
  add(jobs) {
    if (this.isIdle) this.reset();
    this.waiting.push(...jobs);
    for (let i = 0; i < AT_ONCE; i++) this.next();
    this.report();
  }

  /** Forgets what waits, and what is under way. */
  stop() {
    this.abort.abort();
    this.reset();
    this.report();
  }

  async next() {
    if (this.running >= AT_ONCE) return;
    const job = this.waiting.shift();
    if (job === undefined) return;
    const { signal } = this.abort;
    this.running++;
    try {
      await this.work(job, signal);
    } finally {
      if (!signal.aborted) this.finish(); // else the queue has been reset meanwhile
    }
  }

  finish() {
    this.running--;
    this.done++;
    this.report();
    this.next();
  }

  report() {
    const seconds = (performance.now() - this.began) / 1000;
    const of = this.done + this.running + this.waiting.length;
    const perSecond = this.done / Math.max(seconds, 1e-3);
    this.whenChanged({ done: this.done, of, perSecond, left: (of - this.done) / (perSecond || 1) });
  }
}
