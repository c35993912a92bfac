// Search by a picture: who is it like, under its mask and without, and which patches of it were in sight.

import { call, chip, make } from "/static/api.js";

export function showSearch(onPerson) {
  const drop = document.getElementById("drop"), input = document.getElementById("picture");
  const found = document.getElementById("found");

  async function search(file) {
    found.replaceChildren(make("p", { className: "muted", textContent: "searching" }));
    try {
      const answer = await call("/search", { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
      const picture = await createImageBitmap(file);
      const masks = answer.visibility !== null;  // another project's network has none
      found.replaceChildren(query(picture, answer), make("div", { className: "ranks" },
        ...(masks ? [ranks("Under its mask", answer.masked, onPerson)] : []),
        ranks(masks ? "Without a mask" : "Most alike", answer.plain, onPerson)));
    } catch (problem) {
      found.replaceChildren(make("p", { textContent: problem.message, role: "alert" }));
    }
  }

  input.onchange = () => input.files[0] && search(input.files[0]);
  // A picture may be dropped anywhere on the page.
  addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const file = [...event.dataTransfer.files].find((one) => one.type.startsWith("image/"));
    if (!file) return;
    drop.scrollIntoView({ block: "center" });
    search(file);
  });
}

function query(picture, answer) {
  const [x0, y0, x1, y1] = answer.box || [0, 0, picture.width, picture.height];
  const canvas = make("canvas", { width: Math.max(1, x1 - x0), height: Math.max(1, y1 - y0) });
  canvas.setAttribute("role", "img");
  const seen = answer.visibility;
  const share = seen === null ? "" : `, ${Math.round(100 * seen)} % in sight`;
  canvas.setAttribute("aria-label", `The person that was searched for${share}`);
  const context = canvas.getContext("2d");
  context.drawImage(picture, x0, y0, x1 - x0, y1 - y0, 0, 0, canvas.width, canvas.height);
  const map = answer.visibility_map;
  if (map) {
    const high = canvas.height / map.length, wide = canvas.width / map[0].length;
    map.forEach((row, y) => row.forEach((seen, x) => {
      context.fillStyle = `rgb(0 0 0 / ${(0.75 * (1 - seen)).toFixed(2)})`;
      context.fillRect(x * wide, y * high, wide + 1, high + 1);
    }));
  }
  const text = map ? "Dark patches do not show the person; the mask leaves out what they say." : "";
  return make("div", { className: "query" }, canvas, make("p", { className: "muted" },
    seen === null ? "" : `Visibility ${seen.toFixed(2)}. ${text}`));
}

function ranks(title, matches, onPerson) {
  const list = make("ol", {}, ...matches.map((one) => {
    const button = make("button", { type: "button", className: "chip", textContent: one.name || one.identity, style: chip(one.identity) });
    button.onclick = () => onPerson(one.identity);
    const sure = one.probability === null ? "" : `, ${Math.round(100 * one.probability)} %`;
    return make("li", {}, button, ` ${one.similarity.toFixed(3)}${sure}${one.camera ? ` · ${one.camera}` : ""}`);
  }));
  return make("div", {}, make("h3", { textContent: title }),
    matches.length ? list : make("p", { className: "muted", textContent: "Nobody is in the gallery yet." }));
}
