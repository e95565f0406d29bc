/** Numbers, times and sizes for people. */

const DASH = "–";

export function number(value: unknown, digits = 4): string {
  if (typeof value !== "number" || !Number.isFinite(value)) return DASH;
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6
    ? Number(value.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits })
    : value.toExponential(2);
}

/** All of something is said of nothing less, and nothing of no more: 0.995 is `>99 %`. */
export function percent(value: unknown, digits = 0): string {
  if (typeof value !== "number" || !Number.isFinite(value)) return DASH;
  const said = (100 * value).toFixed(digits);
  const step = 10 ** -digits;
  if (value < 1 && Number(said) >= 100) return `>${(100 - step).toFixed(digits)} %`;
  if (value > 0 && Number(said) === 0) return `<${step.toFixed(digits)} %`;
  return `${said} %`;
}

/** Unix seconds. */
export function time(seconds: unknown): string {
  if (typeof seconds !== "number") return DASH;
  return new Date(seconds * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

export function duration(seconds: unknown): string {
  if (typeof seconds !== "number" || !Number.isFinite(seconds)) return DASH;
  const whole = Math.max(0, Math.round(seconds));
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

export function size(bytes: unknown): string {
  if (typeof bytes !== "number" || !Number.isFinite(bytes)) return DASH;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = bytes < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10));
  return `${Number((bytes / 1024 ** power).toPrecision(3))} ${units[power]}`;
}

export function count(value: number, one: string, many = `${one}s`): string {
  return `${value.toLocaleString("en")} ${value === 1 ? one : many}`;
}

/** Whatever JSON holds, on one line. */
export function plain(value: unknown): string {
  if (value === null || value === undefined || value === "") return DASH;
  if (typeof value === "number") return number(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}
