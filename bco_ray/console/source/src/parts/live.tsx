/** What a screen reader is told without moving there. */

import { useEffect, useState } from "preact/hooks";

let tell: (text: string) => void = () => {};

/** Say it once, politely. */
export function say(text: string): void {
  tell("");
  requestAnimationFrame(() => tell(text));
}

export function LiveRegion() {
  const [text, setText] = useState("");
  useEffect(() => {
    tell = setText;
    return () => {
      tell = () => {};
    };
  }, []);
  return (
    <p class="unseen" role="status" aria-live="polite">
      {text}
    </p>
  );
}
