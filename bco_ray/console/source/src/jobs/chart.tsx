/** Lines over steps, drawn by uPlot. The same numbers are told in words beside them. */

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { number } from "../format.ts";
import { newest, seriesOf, type Panel, type Row } from "./curves.ts";

const HEIGHT = 200;
const INKS = ["--accent", "--bad", "--good"];
const DASHES = [[], [6, 3], [2, 3]];

export function Curves({ panel, rows }: { panel: Panel; rows: Row[] }) {
  const values = newest(panel, rows);
  const data = useMemo(() => seriesOf(panel, rows), [panel, rows]);
  if (!values.length) return null;
  const steps = data[0]?.at(-1) ?? 0; // of a long training not every one is here
  const words = values.map(({ name, value }) => `${name} ${number(value)}`).join(", ");
  return (
    <figure class="card">
      <figcaption>
        {panel.title}
        <span class="help"> — {words}</span>
      </figcaption>
      <Plot
        label={`${panel.title} over ${number(steps)} steps; now ${words}.`}
        names={panel.lines.map((line) => line.name)}
        data={data}
      />
    </figure>
  );
}

/**
 * `data`: the x values, and one list for each name; drawn anew when it is another list. `times`: x are unix seconds, told
 * in UTC, and y are shares.
 */
export function Plot({ label, names, data, times = false }: { label: string; names: string[]; data: (number | null)[][]; times?: boolean }) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const look = useLook();
  useEffect(() => {
    const box = place.current;
    if (!box) return;
    plot.current = new uPlot(optionsOf(names, box.clientWidth, times, (data[0]?.length ?? 0) < 40), data as uPlot.AlignedData, box);
    const watching = new ResizeObserver(() => plot.current?.setSize({ width: box.clientWidth, height: HEIGHT }));
    watching.observe(box);
    return () => {
      watching.disconnect();
      plot.current?.destroy();
    };
  }, [look]);
  useEffect(() => {
    if (plot.current) update(plot.current, data as uPlot.AlignedData);
  }, [data]);
  return <div class="plot" ref={place} role="img" aria-label={label} />;
}

/** Who has zoomed in stays there. */
function update(plot: uPlot, data: uPlot.AlignedData): void {
  if (data === plot.data) return;
  const [first, last] = [plot.data[0][0], plot.data[0].at(-1)];
  const { min, max } = plot.scales.x!;
  const zoomed = first !== undefined && last !== undefined && min != null && max != null && (min > first || max < last);
  plot.setData(data, !zoomed);
  if (zoomed) plot.redraw();
}

function optionsOf(names: string[], width: number, times: boolean, few: boolean): uPlot.Options {
  const style = getComputedStyle(document.documentElement);
  const ink = (name: string) => style.getPropertyValue(name).trim();
  const axis: uPlot.Axis = { stroke: ink("--soft"), grid: { stroke: ink("--line"), width: 1 }, ticks: { stroke: ink("--line") } };
  return {
    width,
    height: HEIGHT,
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
    scales: { x: { time: times }, y: times ? { range: [0, 1] } : {} },
    axes: [axis, { ...axis, size: 60 }],
    legend: { show: names.length > 1 },
    cursor: { y: false },
    series: [
      { label: times ? "Day" : "Step" },
      ...names.map((label, index) => ({
        label,
        stroke: ink(INKS[index % INKS.length]!),
        dash: DASHES[index % DASHES.length],
        width: 2,
        spanGaps: true,
        points: { show: few },
      })),
    ],
  };
}

/** Changes when the theme does: a canvas has to be drawn anew. */
function useLook(): number {
  const [look, setLook] = useState(0);
  useEffect(() => {
    const change = () => setLook((before) => before + 1);
    const system = matchMedia("(prefers-color-scheme: dark)");
    const chosen = new MutationObserver(change);
    system.addEventListener("change", change);
    chosen.observe(document.documentElement, { attributeFilter: ["data-theme"] });
    return () => {
      system.removeEventListener("change", change);
      chosen.disconnect();
    };
  }, []);
  return look;
}
