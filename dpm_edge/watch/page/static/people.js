// People: a list, and a dialog in which one is named, merged, corrected or forgotten.

import { call, chip, make, names, send, when, span } from "/static/api.js";
import { entry } from "/static/timeline.js";

export function showPeople(onChange) {
  const list = document.getElementById("people-list"), dialog = document.getElementById("person");
  const error = document.getElementById("person-error");
  let people = [], shown = "", current = null;

  async function refresh() {
    people = await call("/people");
    names.clear();
    for (const one of people) if (one.name) names.set(one.identity, one.name);
    const mark = JSON.stringify(people);
    if (mark === shown) return;
    shown = mark;
    document.getElementById("people-count").textContent = people.length === 1 ? "1 person" : `${people.length} people`;
    const focused = document.activeElement?.dataset?.identity;
    list.replaceChildren(...people.map(card));
    if (focused) list.querySelector(`[data-identity="${CSS.escape(focused)}"]`)?.focus();
  }

  function card(one) {
    const face = one.thumbnail
      ? make("img", { className: "face", alt: "", src: `/api/v1/people/${encodeURIComponent(one.identity)}/thumbnail.jpg` })
      : make("span", { className: "face", textContent: (one.name || one.identity).slice(0, 2), style: chip(one.identity) });
    face.setAttribute("aria-hidden", "true");
    const button = make("button", { type: "button", dataset: { identity: one.identity } }, face, make("span", {},
      make("strong", { textContent: one.name || one.identity }),
      make("span", { className: "muted", textContent: `${one.cameras.join(", ")} · last seen ${when(one.last)}` })));
    button.onclick = () => show(one.identity);
    return make("li", {}, button);
  }

  async function show(identity) {
    error.textContent = "";
    const [person] = await Promise.all([call(`/people/${encodeURIComponent(identity)}`), refresh()]).catch((problem) => {
      document.getElementById("news").textContent = problem.message;
      return [null];
    });
    if (!person) return;
    current = identity;
    document.getElementById("person-title").textContent = person.name || identity;
    document.getElementById("person-id").textContent = person.name ? identity : "";
    document.getElementById("name").value = person.name || "";
    const others = people.filter((one) => one.identity !== identity);
    document.getElementById("into").replaceChildren(make("option", { value: "", textContent: "…" }),
      ...others.map((one) => make("option", { value: one.identity, textContent: one.name || one.identity })));
    document.getElementById("sightings").replaceChildren(...person.tracks.map((track) => sighting(track, person)));
    document.getElementById("person-events").replaceChildren(...person.events.slice(0, 50).map((one) => entry(one)));
    if (!dialog.open) dialog.showModal();
  }

  function sighting(track, person) {
    const text = `${track.camera}, ${when(track.first)}, for ${span(track.last - track.first)}`;
    const item = make("li", {}, make("span", { textContent: text }));
    if (person.tracks.length > 1) {
      const button = make("button", { type: "button", textContent: "Somebody else" });
      button.setAttribute("aria-label", `Somebody else: ${text}`);
      button.onclick = () => act(() =>
        send(`/people/${encodeURIComponent(current)}/split`, "POST", { camera: track.camera, track: track.track }), true);
      item.append(button);
    }
    return item;
  }

  async function act(work, stay) {
    error.textContent = "";
    try {
      await work();
    } catch (problem) {
      error.textContent = problem.message;
      return;
    }
    if (stay) await show(current); else dialog.close();
    await refresh();
    await onChange();
  }

  const on = (id, work, stay = false) => {
    document.getElementById(id).onsubmit = (event) => { event.preventDefault(); act(work, stay); };
  };
  const path = () => `/people/${encodeURIComponent(current)}`;
  on("name-form", () => send(path(), "PATCH", { name: document.getElementById("name").value }), true);
  on("merge-form", () => send(`${path()}/merge`, "POST", { into: document.getElementById("into").value }));
  document.getElementById("forget-form").onsubmit = (event) => {
    event.preventDefault();
    if (confirm(`Delete everything about ${current}? This cannot be undone.`)) act(() => send(path(), "DELETE"));
  };
  return { refresh, show };
}
