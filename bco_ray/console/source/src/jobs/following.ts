/** Something that grows, followed: one look at a time, and what was read is never read again. */

import { inWords, wasAborted } from "../api.ts";
import { pauseAfter } from "../parts/polling.ts";

const USUAL_SECONDS = 2;

/** From what is known to what is known then. It may `tell` of it on the way, and what was told counts if it breaks off. */
export type Look<T> = (known: T, tell: (known: T) => void, signal: AbortSignal) => Promise<void>;

export interface Followed<T> {
  known: T;
  /** Whether a look has come to its end yet. */
  looked: boolean;
  error: string | null;
}

export class Follower<T> {
  private readonly leaving = new AbortController();
  private busy = false;
  private asked = false;
  private failures = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private state: Followed<T>,
    private readonly look: Look<T>,
    private readonly tell: (state: Followed<T>) => void,
  ) {}

  /** There may be more. While a look is on its way there will be one more after it; after an error it has to wait. */
  ask(): void {
    if (this.leaving.signal.aborted || this.timer !== undefined) return;
    this.asked = true;
    if (!this.busy) void this.run();
  }

  leave(): void {
    this.leaving.abort();
    clearTimeout(this.timer);
  }

  private async run(): Promise<void> {
    this.busy = true;
    while (this.asked && !this.leaving.signal.aborted) {
      this.asked = false;
      await this.once();
    }
    this.busy = false;
  }

  private async once(): Promise<void> {
    const { signal } = this.leaving;
    try {
      await this.look(this.state.known, (known) => !signal.aborted && this.publish({ known }), signal);
      this.failures = 0;
      if (!signal.aborted) this.publish({ looked: true, error: null });
    } catch (error) {
      if (signal.aborted || wasAborted(error)) return;
      this.publish({ error: inWords(error) });
      this.wait(pauseAfter(error, (this.failures += 1), USUAL_SECONDS));
    }
  }

  private wait(seconds: number | null): void {
    this.asked = false;
    if (seconds === null) return this.leave();
    this.timer = setTimeout(() => {
      this.timer = undefined;
      this.ask();
    }, seconds * 1000);
  }

  private publish(changes: Partial<Followed<T>>): void {
    this.state = { ...this.state, ...changes };
    this.tell(this.state);
  }
}
