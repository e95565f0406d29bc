import { get, type Page } from "../api.ts";
import { Heading, Nothing, Pending, Table } from "../parts/basics.tsx";
import { useLoaded } from "../parts/loaded.ts";
import { addressOf } from "../route.ts";
import { WATCH_SECONDS, type Model } from "./stats.ts";

export function ModelsPage() {
  const found = useLoaded(async (signal) => (await get<Page<Model>>("/v1/registry/models", signal)).data, [], (models) =>
    models?.some((model) => model.canary) ? WATCH_SECONDS : null,
  );
  return (
    <>
      <Heading>Models</Heading>
      <Pending of={found} what="models" />
      {found.value?.length === 0 && <Nothing>No model is registered yet. A job that succeeds registers one.</Nothing>}
      {found.value && found.value.length > 0 && (
        <Table caption="Registered models" head={["Model", "Versions", "Aliases", "Canary"]}>
          {found.value.map((model) => (
            <tr key={model.id}>
              <th scope="row">
                <a href={addressOf("models", model.id)}>{model.id}</a>
              </th>
              <td>{model.versions.length}</td>
              <td>
                {Object.entries(model.aliases)
                  .map(([alias, version]) => `${alias} → ${version}`)
                  .join(", ") || "–"}
              </td>
              <td>{model.canary ? `${model.canary.percent} %` : "–"}</td>
            </tr>
          ))}
        </Table>
      )}
    </>
  );
}
