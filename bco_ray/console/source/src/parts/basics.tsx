/** Small things that every page is made of. All text in them is text: nothing is ever parsed as HTML. */

import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef } from "preact/hooks";

export function Heading({ children, actions }: { children: ComponentChildren; actions?: ComponentChildren }) {
  const here = useRef<HTMLHeadingElement>(null);
  useEffect(() => here.current?.focus({ preventScroll: true }), []);
  return (
    <div class="heading">
      <h1 ref={here} tabIndex={-1}>
        {children}
      </h1>
      {actions}
    </div>
  );
}

/** What went wrong, in words. */
export function Trouble({ error }: { error: string | null }) {
  return error ? (
    <p class="trouble" role="alert">
      {error}
    </p>
  ) : null;
}

/** What is not there yet, and what did not come; nothing once it is there. */
export function Pending({ of, what }: { of: { value: unknown; error: string | null; again?: () => void }; what: string }) {
  const again = () => {
    document.querySelector("h1")?.focus(); // the button goes away
    of.again?.();
  };
  if (of.error) {
    return (
      <>
        <Trouble error={of.error} />
        {of.again && (
          <button type="button" onClick={again}>
            Try again
          </button>
        )}
      </>
    );
  }
  return of.value === null ? <p class="nothing">Loading {what} …</p> : null;
}

export function Nothing({ children }: { children: ComponentChildren }) {
  return <p class="nothing">{children}</p>;
}

/** One label, one control, perhaps a word of help. `control` gets the id and what describes it. */
export function Field(props: {
  label: string;
  help?: string;
  error?: string | null;
  control: (its: { id: string; "aria-describedby"?: string; "aria-invalid"?: boolean }) => ComponentChildren;
}) {
  const id = useId();
  const said = [props.help && `${id}-help`, props.error && `${id}-error`].filter(Boolean).join(" ");
  return (
    <div class="field">
      <label for={id}>{props.label}</label>
      {props.control({ id, "aria-describedby": said || undefined, "aria-invalid": props.error ? true : undefined })}
      {props.help && (
        <small id={`${id}-help`} class="help">
          {props.help}
        </small>
      )}
      {props.error && (
        <small id={`${id}-error`} class="wrong">
          {props.error}
        </small>
      )}
    </div>
  );
}

export function Badge({ status }: { status: string }) {
  return <span class={`badge is-${status.replace(/[^a-z_]/g, "")}`}>{status.replaceAll("_", " ")}</span>;
}

/** Name and value, one below the other. */
export function Facts({ facts }: { facts: [string, ComponentChildren][] }) {
  return (
    <dl class="facts">
      {facts.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

/** A table that scrolls by itself where the window is narrow; it can be scrolled with the keyboard, too. */
export function Table({ caption, head, children }: { caption: string; head: string[]; children: ComponentChildren }) {
  return (
    <div class="scrolls" role="region" aria-label={caption} tabIndex={0}>
      <table>
        <caption class="unseen">{caption}</caption>
        <thead>
          <tr>
            {head.map((name) => (
              <th scope="col" key={name}>
                {name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>{children}</tbody>
      </table>
    </div>
  );
}
