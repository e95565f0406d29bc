/** The inputs of a form that a schema describes. */

import { Field } from "../parts/basics.tsx";
import { own } from "../route.ts";
import { spelled, type Group, type Input } from "./schema.ts";

export interface Typed {
  values: Record<string, string>;
  wrong: Record<string, string>;
  set: (path: string, text: string) => void;
}

/** Open whatever hides a field that does not fit, and go to the first one. */
export function showWrong(form: HTMLElement): void {
  const found = [...form.querySelectorAll<HTMLElement>('[aria-invalid="true"], [data-wrong]')];
  for (const one of found) {
    for (let folded = one.closest("details"); folded; folded = folded.parentElement?.closest("details") ?? null) folded.open = true;
  }
  found[0]?.focus();
}

export function GroupFields({ group, typed, label }: { group: Group; typed: Typed; label?: string }) {
  const wrong = own(typed.wrong, group.path.join("."));
  return (
    <fieldset>
      <legend>{label ?? group.name}</legend>
      {group.help && <p class="help">{group.help}</p>}
      {wrong && (
        <p class="wrong" tabIndex={-1} data-wrong>
          {wrong}
        </p>
      )}
      <Inputs inputs={group.inputs} typed={typed} />
      {group.groups.map((inner) => (
        <GroupFields key={inner.name} group={inner} typed={typed} />
      ))}
    </fieldset>
  );
}

export function Inputs({ inputs, typed }: { inputs: Input[]; typed: Typed }) {
  return (
    <div class="inputs">
      {inputs.map((input) => (
        <OneInput key={input.path.join(".")} input={input} typed={typed} />
      ))}
    </div>
  );
}

function OneInput({ input, typed }: { input: Input; typed: Typed }) {
  const path = input.path.join(".");
  const value = typed.values[path] ?? "";
  const change = (event: { currentTarget: { value: string } }) => typed.set(path, event.currentTarget.value);
  const numeric = (input.kind === "number" || input.kind === "integer") && !input.words.length;
  return (
    <Field
      label={input.name}
      error={typed.wrong[path]}
      control={(its) =>
        input.kind === "choice" ? (
          <select {...its} value={value} onChange={change}>
            <option value="">{input.otherwise || "not said"}</option>
            {input.choices.map(spelled).map((choice) => (
              <option key={choice} value={choice}>
                {choice}
              </option>
            ))}
          </select>
        ) : (
          <input
            {...its}
            type="text"
            inputMode={numeric ? "decimal" : undefined}
            autocomplete="off"
            placeholder={input.otherwise || (input.kind === "json" ? "JSON" : "")}
            value={value}
            onInput={change}
          />
        )
      }
    />
  );
}
