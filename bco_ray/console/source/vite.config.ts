import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { defineConfig, type Plugin } from "vite";

const root = import.meta.dirname;
const built = join(root, "../static");

/** As `tests/console/test_assets.py` computes it: one line per file, its path and the digest of its content. */
function digest(folder: string, counts: (name: string) => boolean): string {
  const names = readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(folder, join(entry.parentPath, entry.name)).replaceAll("\\", "/"))
    .filter(counts);
  const lines = names.sort().map((name) => {
    const content = createHash("sha256").update(readFileSync(join(folder, name))).digest("hex");
    return `${content}  ${name}\n`;
  });
  return createHash("sha256").update(lines.join("")).digest("hex");
}

const isSource = (name: string) =>
  !name.startsWith("node_modules/") && !name.endsWith(".test.ts") && name !== "built.json";

/** Writes down what was built from what, so that a test notices assets that were left behind. */
const record: Plugin = {
  name: "record",
  closeBundle() {
    const said = { sources: digest(root, isSource), static: digest(built, () => true) };
    writeFileSync(join(root, "built.json"), `${JSON.stringify(said, null, 2)}\n`);
  },
};

export default defineConfig({
  base: "/console/",
  build: {
    outDir: built,
    emptyOutDir: true,
    assetsDir: "",
    target: "es2022",
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    rollupOptions: { output: { entryFileNames: "[name]-[hash].js", assetFileNames: "[name]-[hash][extname]" } },
  },
  server: { proxy: { "/v1": "http://127.0.0.1:8000", "/openapi.json": "http://127.0.0.1:8000" } },
  plugins: [record],
});
