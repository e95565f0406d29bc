/** A question that has to be answered first. The browser keeps the focus inside, and Escape is no. */

import type { ComponentChildren } from "preact";
import { useId, useLayoutEffect, useRef, useState } from "preact/hooks";
import { inWords } from "../api.ts";
import { Trouble } from "./basics.tsx";

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
    setBusy(true);
    setError(null);
    try {
      await onYes();
      onClose();
    } catch (problem) {
      setError(inWords(problem));
      setBusy(false);
    }
  };
  return (
    <dialog ref={dialog} aria-labelledby={id} onCancel={(event) => busy && event.preventDefault()} onClose={onClose}>
      <h2 id={id}>{title}</h2>
      {children}
      <Trouble error={error} />
      <div class="actions">
        <button type="button" disabled={busy} onClick={onClose}>
          No, leave it
        </button>
        <button type="button" class={danger ? "danger" : "primary"} disabled={busy} onClick={answer}>
          {yes}
        </button>
      </div>
    </dialog>
  );
}
