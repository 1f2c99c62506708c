/** Files waiting to be judged, a few at a time. */

const AT_ONCE = 3;

export class Queue {
  /**
   * @param {(job: object, signal: AbortSignal) => Promise<void>} work
   * @param {(state: {done: number, of: number, perSecond: number, left: number}) => void} whenChanged left: seconds
   */
  constructor(work, whenChanged) {
    Object.assign(this, { work, whenChanged });
    this.reset();
  }

  reset() {
    this.waiting = [];
    this.running = 0;
    this.done = 0;
    this.began = null;
    this.abort = new AbortController();
  }

  get isIdle() {
    return !this.running && !this.waiting.length;
  }

  add(jobs) {
    if (this.isIdle) this.reset();
    this.began ??= performance.now();
    this.waiting.push(...jobs);
    for (let i = 0; i < AT_ONCE; i++) this.next();
    this.tell();
  }

  /** Forgets what waits, and what is under way. */
  stop() {
    this.abort.abort();
    this.reset();
    this.tell();
  }

  async next() {
    if (this.running >= AT_ONCE || !this.waiting.length) return;
    const { signal } = this.abort;
    this.running++;
    await this.work(this.waiting.shift(), signal);
    if (signal.aborted) return; // the queue has been reset meanwhile
    this.running--;
    this.done++;
    this.tell();
    this.next();
  }

  tell() {
    const seconds = (performance.now() - this.began) / 1000;
    const of = this.done + this.running + this.waiting.length;
    const perSecond = this.done / Math.max(seconds, 1e-3);
    this.whenChanged({ done: this.done, of, perSecond, left: (of - this.done) / (perSecond || 1) });
  }
}
