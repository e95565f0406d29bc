import { count, duration, number, percent, size } from "../format.ts";
import { Facts } from "../parts/basics.tsx";
import type { Estimate } from "./types.ts";

export function EstimateView({ estimate }: { estimate: Estimate }) {
  const { rows, usable_rows, label_rate, steps, trained_tokens, memory, workers, seconds, gpu_hours, basis, exact } = estimate;
  return (
    <section class="card" aria-label="What it would take">
      <h2>What it would take</h2>
      <Facts
        facts={[
          ["Votes", `${number(usable_rows)} usable of ${number(rows)}${exact ? "" : ", about"}`],
          ["Thumbs up", percent(label_rate, 1)],
          ["Steps", number(steps)],
          ["Tokens of a vote", number(estimate.tokens_per_row, 3)],
          ["Tokens trained on", number(trained_tokens)],
          ["Parameters trained", `${number(estimate.trained_parameters)} of ${number(estimate.parameters)}`],
          ["Memory per worker", size(memory.total)],
          ["Workers", count(workers, "worker")],
          ["Time", seconds === null ? "not known here" : duration(seconds)],
          ["Time of GPUs", gpu_hours === null ? "not known here" : duration(gpu_hours * 3600)],
          ["Time is reckoned from", basis],
        ]}
      />
      {estimate.warnings.length > 0 && (
        <ul>
          {estimate.warnings.map((warning) => (
            <li key={warning}>{warning}</li>
          ))}
        </ul>
      )}
    </section>
  );
}
