import { render } from "preact";
import { App } from "./app.tsx";
import { showTheme } from "./session.ts";
import "uplot/dist/uPlot.min.css";
import "./style.css";

showTheme();
const place = document.getElementById("console");
if (place) {
  place.replaceChildren();
  render(<App />, place);
}
