/** Requests that supersede each other. */

export class Latest {
  /** @type {AbortController | null} */
  #controller = null;

  /** Aborts the request before, if it is still under way. @returns {AbortSignal} for the next one */
  begin() {
    this.abort();
    this.#controller = new AbortController();
    return this.#controller.signal;
  }

  abort() {
    this.#controller?.abort();
  }
}
