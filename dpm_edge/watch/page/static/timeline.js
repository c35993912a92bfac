// What happened, newest first, and who came from one camera to another.

import { call, chip, make, nameOf, open, span, time } from "/static/api.js";

const MOST = 200;  // kept on the page, so that one left open for a day stays light

export async function showTimeline(site, onPerson, onEvent) {
  const list = document.getElementById("events"), rows = document.getElementById("way-rows");
  const kinds = document.getElementById("kinds"), news = document.getElementById("news");
  for (const [kind, meaning] of Object.entries(site.kinds)) {
    kinds.append(make("option", { value: kind, textContent: kind.replaceAll("_", " "), title: meaning }));
  }
  let last = 0;

  async function fill() {
    const wanted = kinds.value ? `&kind=${kinds.value}` : "";
    const events = await call(`/events?limit=100${wanted}`);
    list.replaceChildren(...events.map((event) => entry(event, onPerson)));
    if (!events.length) list.replaceChildren(make("li", { className: "muted", textContent: "Nothing has happened yet." }));
    return events;
  }

  async function fillWays() {
    rows.replaceChildren(...(await call("/events?limit=100&kind=moved")).map((event) => way(event, onPerson)));
    document.getElementById("no-ways").hidden = rows.children.length > 0;
  }

  kinds.onchange = fill;
  last = (await fill())[0]?.seq || 0;
  await fillWays();
  open(() => `/events/live?after=${last}`, (data) => {
    const event = JSON.parse(data);
    last = Math.max(last, event.seq);
    if (!kinds.value || kinds.value === event.kind) {
      if (list.firstElementChild?.className === "muted") list.replaceChildren();
      list.prepend(entry(event, onPerson));
      while (list.children.length > MOST) list.lastElementChild.remove();
    }
    if (event.kind === "moved") {
      rows.prepend(way(event, onPerson));
      while (rows.children.length > MOST) rows.lastElementChild.remove();
      document.getElementById("no-ways").hidden = true;
    }
    news.textContent = `${event.camera}: ${event.sentence}`;
    onEvent(event);
  }, (open) => { document.getElementById("state").textContent = open ? "connected" : "no connection, trying again"; });
  return { refresh: async () => { await fill(); await fillWays(); } };
}

export function entry(event, onPerson) {
  const text = make("span", {}, event.sentence);
  if (event.identity && onPerson && event.sentence.startsWith(event.identity)) {
    text.replaceChildren(person(event.identity, onPerson), event.sentence.slice(event.identity.length));
  }
  const at = event.camera ? make("span", { className: "at", textContent: ` · ${event.camera}` }) : null;
  return make("li", { dataset: { kind: event.kind } }, time(event.unix), make("span", {}, text, at));
}

function way(event, onPerson) {
  const cell = (...content) => make("td", {}, ...content);
  return make("tr", {}, cell(person(event.identity, onPerson)), cell(event.details.from), cell(event.details.to),
    cell(span(event.details.gap_s)), cell(time(event.unix)));
}

function person(identity, onPerson) {
  const button = make("button", { type: "button", className: "chip", textContent: nameOf(identity), style: chip(identity) });
  button.onclick = () => onPerson(identity);
  return button;
}
