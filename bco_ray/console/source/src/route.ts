/** The page's own addresses: `#/jobs/ftjob-1` is ["jobs", "ftjob-1"]. */

import { useEffect, useState } from "preact/hooks";

export function partsOf(hash: string): string[] {
  const path = hash.replace(/^#\/?/, "");
  return path ? path.split("/").map(decoded) : ["chat"];
}

export function addressOf(...parts: string[]): string {
  return `#/${parts.map(encodeURIComponent).join("/")}`;
}

/** Of a record what it says itself, and not what every object has: `constructor` is nobody's page. */
export function own<T>(record: Record<string, T>, name: string): T | undefined {
  return Object.hasOwn(record, name) ? record[name] : undefined;
}

export function go(...parts: string[]): void {
  location.hash = addressOf(...parts);
}

export function useRoute(): string[] {
  const [hash, setHash] = useState(location.hash);
  useEffect(() => {
    const follow = () => setHash(location.hash);
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return partsOf(hash);
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
