/** The rows that are not trained on, and why. */

import { useEffect, useRef, useState } from "preact/hooks";
import { get, inWords, withQuery, type Page } from "../api.ts";
import { number, percent, plain } from "../format.ts";
import { Field, Nothing, Pending, Table, Trouble } from "../parts/basics.tsx";
import { useLoaded } from "../parts/loaded.ts";
import type { RefusedRow } from "./report.ts";

export function Refused({ path, reasons, read }: { path: string; reasons: [string, number][]; read: number }) {
  const [reason, setReason] = useState("");
  const first = useLoaded(
    (signal) => get<Page<RefusedRow>>(withQuery(`${path}/quarantine`, reason ? { reason } : {}), signal),
    [path, reason],
  );
  const [more, setMore] = useState<{ of: string; pages: Page<RefusedRow>[] }>({ of: "", pages: [] });
  const [error, setError] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const section = useRef<HTMLElement>(null);
  const fresh = useRef<number | null>(null);
  useEffect(() => {
    if (fresh.current === null) return;
    section.current?.querySelectorAll<HTMLElement>("article pre")[fresh.current]?.focus(); // the button may be gone
    fresh.current = null;
  }, [more]);
  const pages = [...(first.value ? [first.value] : []), ...(more.of === reason ? more.pages : [])];
  const last = pages.at(-1);
  const next = async () => {
    if (busy) return;
    setBusy(true);
    setError(null);
    try {
      const query = { ...(reason && { reason }), after: last?.last_id ?? "" };
      const page = await get<Page<RefusedRow>>(withQuery(`${path}/quarantine`, query));
      const before = pages.flatMap((one) => one.data).length;
      setMore({ of: reason, pages: [...pages.slice(1), page] });
      fresh.current = before;
    } catch (problem) {
      setError(inWords(problem));
    }
    setBusy(false);
  };
  return (
    <section aria-labelledby="refused" ref={section}>
      <h2 id="refused">Votes that are not trained on</h2>
      {!reasons.length && <Nothing>Every vote was kept.</Nothing>}
      {reasons.length > 0 && (
        <Table caption="Why votes were dropped" head={["Reason", "Votes", "Of those read"]}>
          {reasons.map(([name, count]) => (
            <tr key={name}>
              <th scope="row">{name}</th>
              <td>{number(count)}</td>
              <td>{percent(read ? count / read : null, 1)}</td>
            </tr>
          ))}
        </Table>
      )}
      {reasons.length > 0 && (
        <Field
          label="Reason"
          control={(its) => (
            <select {...its} value={reason} onChange={(event) => setReason(event.currentTarget.value)}>
              <option value="">every reason</option>
              {reasons.map(([name, count]) => (
                <option key={name} value={name}>
                  {name}: {count.toLocaleString("en")}
                </option>
              ))}
            </select>
          )}
        />
      )}
      <Pending of={first} what="rows" />
      <Trouble error={error} />
      {pages
        .flatMap((page) => page.data)
        .map((row) => (
          <article class="card" key={row.id} aria-label={`${row.reason} in ${row.file}`}>
            <p class="by">
              {row.reason} ({row.stage}), {row.file} at {row.position}
            </p>
            <p>{plain(row.detail)}</p>
            <pre tabIndex={0}>{row.raw || "nothing is left of it"}</pre>
            {row.truncated && <p class="note">This is its beginning: the row goes on.</p>}
          </article>
        ))}
      {last?.has_more && (
        <button type="button" onClick={next}>
          More
        </button>
      )}
    </section>
  );
}
