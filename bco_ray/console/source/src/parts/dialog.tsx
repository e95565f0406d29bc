/** A question that has to be answered first. The browser keeps the focus inside, and Escape is no. */

import type { ComponentChildren } from "preact";
import { useId, useLayoutEffect, useRef, useState } from "preact/hooks";
import { inWords } from "../api.ts";
import { Trouble } from "./basics.tsx";
import { say } from "./live.tsx";

/** For buttons that open a question: Safari gives a button that is clicked no focus, so there would be none to go back to. */
export function focusClicked(event: { currentTarget: EventTarget | null }): void {
  if (event.currentTarget instanceof HTMLElement) event.currentTarget.focus();
}

interface Question {
  title: string;
  children: ComponentChildren;
  yes: string;
  danger?: boolean;
  onYes: () => Promise<unknown> | void;
  onClose: () => void;
}

export function Confirm({ title, children, yes, danger, onYes, onClose }: Question) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  const [error, setError] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const asked = useRef(false);
  useLayoutEffect(() => {
    const before = document.activeElement as HTMLElement | null;
    const shown = dialog.current;
    shown?.showModal();
    return () => {
      shown?.close(); // while it is open nothing else can have the focus
      before?.focus?.();
    };
  }, []);
  const answer = async () => {
    if (asked.current) return; // a disabled button would lose the focus, and a double click is faster
    asked.current = true;
    setBusy(true);
    setError(null);
    try {
      await onYes();
      onClose();
    } catch (problem) {
      if (!dialog.current) say(inWords(problem)); // Escape twice closes it, whatever the page says
      setError(inWords(problem));
      setBusy(false);
    }
    asked.current = false;
  };
  return (
    <dialog ref={dialog} aria-labelledby={id} onCancel={(event) => busy && event.preventDefault()} onClose={onClose}>
      <h2 id={id}>{title}</h2>
      {children}
      <Trouble error={error} />
      <div class="actions">
        <button type="button" aria-disabled={busy} onClick={() => busy || onClose()}>
          No, leave it
        </button>
        <button type="button" class={danger ? "danger" : "primary"} aria-disabled={busy} onClick={answer}>
          {yes}
        </button>
      </div>
    </dialog>
  );
}
