/** Idempotency keys: one per thing that is wanted, however often it is asked for until it is done. */

import { randomId } from "../session.ts";

export class Intents {
  private readonly open = new Map<string, { said: string; key: string }>();

  /**
   * The key that goes along with a request for `what` about a subject: another click, or another try after no answer
   * came, has the same. Whoever wants something else of the subject has begun anew.
   */
  key(subject: string, what: unknown = null): string {
    const said = JSON.stringify(what);
    const known = this.open.get(subject);
    if (known?.said === said) return known.key;
    const key = `console-${randomId()}`;
    this.open.set(subject, { said, key });
    return key;
  }

  /** It is done: wanting it again is wanting another one. */
  done(subject: string): void {
    this.open.delete(subject);
  }

  clear(): void {
    this.open.clear();
  }
}
