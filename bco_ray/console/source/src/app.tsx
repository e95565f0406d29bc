import type { JSX, TargetedEvent } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { onRefusal } from "./api.ts";
import { ChatPage } from "./chat/page.tsx";
import { DataPage } from "./data/page.tsx";
import { NewJobPage } from "./jobs/form.tsx";
import { JobsPage } from "./jobs/list.tsx";
import { JobPage } from "./jobs/view.tsx";
import { KeyPage } from "./key.tsx";
import { ModelsPage } from "./models/list.tsx";
import { ModelPage } from "./models/view.tsx";
import { LiveRegion, say } from "./parts/live.tsx";
import { addressOf, own, useRoute } from "./route.ts";
import { keepTheme, key, onSignedOutElsewhere, signOut, theme, THEMES } from "./session.ts";

/** `stays`: the page is still the same one when the rest of its address changes. */
const PAGES: Record<string, { name: string; stays?: boolean; show: (rest: string[]) => JSX.Element }> = {
  chat: { name: "Chat", show: () => <ChatPage /> },
  jobs: { name: "Jobs", show: ([id]) => jobs(id) },
  data: { name: "Data", stays: true, show: ([id]) => <DataPage id={id} /> },
  models: { name: "Models", show: ([name]) => (name === undefined ? <ModelsPage /> : <ModelPage name={name} />) },
};

function jobs(id: string | undefined): JSX.Element {
  if (id === undefined) return <JobsPage />;
  return id === "new" ? <NewJobPage /> : <JobPage id={id} />;
}

export function App() {
  const [page = "chat", ...rest] = useRoute();
  const [refusal, setRefusal] = useState<string | null>(null);
  const [visit, setVisit] = useState(0);
  const shown = useRef(refusal);
  shown.current = refusal;
  const leave = (why: string) => {
    signOut();
    say("");
    setVisit((before) => before + 1);
    setRefusal(why);
  };
  useEffect(() => {
    onRefusal((why) => (key() && shown.current === null ? leave(why) : setRefusal(why)));
    return onSignedOutElsewhere(() => leave("You are signed out."));
  }, []);
  const known = own(PAGES, page) ?? PAGES.chat!;
  useEffect(() => {
    document.title = `${refusal ? "Key" : known.name} · bco-ray`;
  }, [known, refusal]);
  const enter = () => {
    setRefusal(null);
    setVisit((before) => before + 1);
  };
  return (
    <>
      <a class="skip" href="#main" onClick={toMain}>
        Skip to the content
      </a>
      <header>
        <span class="brand">bco-ray</span>
        <nav aria-label="Pages">
          {Object.entries(PAGES).map(([name, { name: shown }]) => (
            <a key={name} href={addressOf(name)} aria-current={known === PAGES[name] ? "page" : undefined}>
              {shown}
            </a>
          ))}
        </nav>
        <ThemeChoice key={visit} />
        {key() && !refusal && (
          <button type="button" class="quiet" onClick={() => leave("You are signed out.")}>
            Sign out
          </button>
        )}
      </header>
      <main id="main" tabIndex={-1}>
        {refusal ? <KeyPage why={refusal} onKey={enter} /> : <div key={`${known.name}/${known.stays ? "" : rest.join("/")}-${visit}`}>{known.show(rest)}</div>}
      </main>
      <LiveRegion />
    </>
  );
}

/** Not by the address: that is the page's. */
function toMain(event: Event): void {
  event.preventDefault();
  document.getElementById("main")?.focus();
}

function ThemeChoice() {
  const [chosen, setChosen] = useState(theme());
  const choose = (event: TargetedEvent<HTMLSelectElement>) => {
    const next = THEMES.find((one) => one === event.currentTarget.value) ?? "auto";
    keepTheme(next);
    setChosen(next);
  };
  return (
    <label class="theme">
      <span class="unseen">Theme</span>
      <select value={chosen} onChange={choose}>
        {THEMES.map((one) => (
          <option key={one} value={one}>
            {one === "auto" ? "As the system" : one === "light" ? "Light" : "Dark"}
          </option>
        ))}
      </select>
    </label>
  );
}
