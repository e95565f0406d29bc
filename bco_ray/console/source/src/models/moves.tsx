/** Moving names between versions. Each is asked about first, and says where the name points now. */

import type { TargetedEvent } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { Field } from "../parts/basics.tsx";
import { Confirm, focusClicked } from "../parts/dialog.tsx";
import { own } from "../route.ts";
import type { Model, Version } from "./stats.ts";
import type { Move } from "./view.tsx";

export function Promote({ model, version, onMove }: { model: Model; version: Version; onMove: Move }) {
  const [asked, setAsked] = useState(false);
  const [alias, setAlias] = useState("prod");
  const [force, setForce] = useState(false);
  const now = own(model.aliases, alias);
  const against = alias === "prod" && version.gate && !version.gate.passes ? version.gate.reasons : [];
  const ask = (event: TargetedEvent<HTMLButtonElement>) => {
    focusClicked(event);
    setAlias("prod");
    setForce(false);
    setAsked(true);
  };
  const body = { version: version.version, alias, expected: now ?? null, ...(against.length && force ? { force } : {}) };
  return (
    <>
      <button type="button" onClick={ask} aria-label={`Promote ${version.id}`}>
        Promote
      </button>
      {asked && (
        <Confirm
          title={`Promote ${version.id}?`}
          yes={`Yes, ${alias} means ${version.id}`}
          onYes={() => onMove("promote", body)}
          onClose={() => setAsked(false)}
        >
          <Field
            label="Name"
            help={`prod is what ${model.id} means; candidate gets the canary's share.`}
            control={(its) => (
              <>
                <input {...its} type="text" list="aliases" value={alias} onInput={(event) => setAlias(event.currentTarget.value)} />
                <datalist id="aliases">
                  {[...new Set(["prod", "candidate", ...Object.keys(model.aliases)])].map((one) => (
                    <option key={one} value={one} />
                  ))}
                </datalist>
              </>
            )}
          />
          <p>{now === undefined ? `${alias} means nothing yet.` : `${alias} means ${model.id}/${now} now.`}</p>
          {against.length > 0 && (
            <>
              <p>Its gate says no:</p>
              <ul>
                {against.map((reason) => (
                  <li key={reason}>{reason}</li>
                ))}
              </ul>
              <label>
                <input type="checkbox" checked={force} onChange={(event) => setForce(event.currentTarget.checked)} /> Promote it all the same;
                that stays in the history
              </label>
            </>
          )}
        </Confirm>
      )}
    </>
  );
}

export function Rollback({ model, alias, version, onMove }: { model: Model; alias: string; version: number; onMove: Move }) {
  const [asked, setAsked] = useState(false);
  const place = useRef<HTMLSpanElement>(null);
  const opener = useRef<HTMLElement | null>(null);
  useEffect(() => {
    if (asked || !opener.current || opener.current.isConnected) return;
    opener.current = null; // there is nothing more to go back to: what was pressed is gone, and with it the focus
    if (document.activeElement === document.body) place.current?.focus();
  });
  const before = own(model.before, alias);
  const ask = (event: TargetedEvent<HTMLButtonElement>) => {
    focusClicked(event);
    opener.current = event.currentTarget;
    setAsked(true);
  };
  if (before === undefined && !asked) {
    return (
      <span tabIndex={-1} ref={place}>
        –
      </span>
    );
  }
  return (
    <>
      <button type="button" onClick={ask} aria-label={`Roll back ${alias}`}>
        Roll back
      </button>
      {asked && (
        <Confirm
          title={`Roll back ${model.id}@${alias}?`}
          yes="Yes, roll back"
          danger
          onYes={() => onMove("rollback", { alias, expected: version })}
          onClose={() => setAsked(false)}
        >
          <p>
            It means {model.id}/{version} now
            {before === undefined ? ", and there is nothing before that to go back to." : `, and goes back to ${model.id}/${before}.`}
          </p>
        </Confirm>
      )}
    </>
  );
}

export function Canary({ model, onMove }: { model: Model; onMove: Move }) {
  const share = String(model.canary?.percent ?? 0);
  const [percent, setPercent] = useState(share);
  const [asked, setAsked] = useState(false);
  useEffect(() => {
    if (!asked) setPercent(share); // what was typed was about another state of things
  }, [model.generation]);
  const candidate = model.aliases.candidate;
  if (candidate === undefined) return <p class="note">Promote a version as candidate, and it can be given a share of the traffic.</p>;
  const ask = (event: TargetedEvent<HTMLFormElement>) => {
    event.preventDefault();
    focusClicked({ currentTarget: (event as unknown as SubmitEvent).submitter });
    setAsked(true);
  };
  return (
    <form class="row" onSubmit={ask}>
      <Field
        label={`Share of ${model.id}/${candidate}, in percent of the requests for ${model.id}`}
        control={(its) => (
          <input {...its} type="number" min={0} max={100} step="any" required value={percent} onInput={(event) => setPercent(event.currentTarget.value)} />
        )}
      />
      <button type="submit">Set the share</button>
      {asked && (
        <Confirm
          title={`Give ${model.id}/${candidate} ${percent || 0} %?`}
          yes="Yes, set the share"
          onYes={() => onMove("canary", { percent: Number(percent), generation: model.generation })}
          onClose={() => setAsked(false)}
        >
          <p>It is {share} % now. The same user stays on one side.</p>
        </Confirm>
      )}
    </form>
  );
}
