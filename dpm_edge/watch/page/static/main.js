// Puts the parts of the page together.

import { call, make } from "/static/api.js";
import { showCamera } from "/static/live.js";
import { showPeople } from "/static/people.js";
import { showSearch } from "/static/search.js";
import { showTimeline } from "/static/timeline.js";

const REFRESH_MS = 2000;

function theme() {
  const button = document.getElementById("theme"), root = document.documentElement;
  const apply = (dark) => {
    root.dataset.theme = dark ? "dark" : "light";
    button.setAttribute("aria-pressed", String(dark));
  };
  const kept = localStorage.getItem("theme");
  apply(kept ? kept === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  button.onclick = () => {
    apply(root.dataset.theme !== "dark");
    localStorage.setItem("theme", root.dataset.theme);
  };
}

function cells(...values) {
  return make("tr", {}, ...values.map((value, at) => make(at ? "td" : "th", at ? {} : { scope: "row" }, String(value))));
}

async function start() {
  theme();
  const site = await call("/site");
  document.title = `${site.name} · dpm-edge watch`;
  document.getElementById("site").textContent = site.name === "site" ? "dpm-edge watch" : site.name;
  const people = showPeople(() => timeline?.refresh());
  const grid = document.getElementById("camera-grid");
  grid.classList.toggle("one", site.cameras.length === 1);
  const cameras = new Map(site.cameras.map((name) => [name, showCamera(name, site, people.show)]));
  grid.append(...[...cameras.values()].map((one) => one.element));
  showSearch(people.show);
  let due = null;
  await people.refresh();
  const timeline = await showTimeline(site, people.show, () => {
    due ??= setTimeout(() => { due = null; people.refresh().catch(() => {}); }, 500);
  });

  async function refresh() {
    if (document.hidden) return;
    const [found, outputs] = await Promise.all([call("/cameras"), call("/outputs")]);
    document.getElementById("camera-rows").replaceChildren(...found.map((one) => cells(one.camera,
      one.message ? `${one.state}: ${one.message}` : one.state, one.rate.toFixed(1), one.dropped, one.reconnects,
      `${Math.round(1000 * one.latency_s)} ms`)));
    for (const one of found) cameras.get(one.camera)?.update(one);
    document.getElementById("output-table").hidden = !outputs.length;
    document.getElementById("output-rows").replaceChildren(...outputs.map((one) => cells(one.name,
      one.message ? `${one.state}: ${one.message}` : one.state, one.delivered, one.backlog, one.refused)));
    await people.refresh();
  }
  const again = () => refresh().catch(() => {}).finally(() => setTimeout(again, REFRESH_MS));
  again();
}

start().catch((problem) => { document.getElementById("state").textContent = problem.message; });
