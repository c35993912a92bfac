// Live cameras: a picture, boxes with identities, and the same as text for those who do not see the picture.

import { chip, colour, make, open } from "/static/api.js";

export function showCamera(name, site, onPerson) {
  const canvas = make("canvas", { width: 640, height: 480 });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Picture of camera ${name}`);
  const badge = make("span", { className: "badge connecting", textContent: "connecting" });
  const who = make("ul", { className: "who" });
  who.setAttribute("aria-label", `In view at ${name}`);
  const figure = make("figure", { className: "camera", dataset: { camera: name } }, canvas,
    make("figcaption", {}, make("strong", { textContent: name }), badge), who);
  const context = canvas.getContext("2d");
  const zones = site.zones.filter((one) => one.camera === name);
  const lines = site.lines.filter((one) => one.camera === name);
  let about = null, shown = "";

  const width = () => Math.min(1920, Math.round(Math.max(320, figure.clientWidth) * (devicePixelRatio || 1)));
  open(() => `/cameras/${encodeURIComponent(name)}/live?width=${width()}`, async (data, socket) => {
    if (typeof data === "string") {
      const message = JSON.parse(data);
      if (!message.quiet) about = message;
      return;
    }
    const now = about;
    try {
      draw(await createImageBitmap(data), now);
      list(now);
    } finally {
      if (socket.readyState === WebSocket.OPEN) socket.send("next");  // only now may the next picture come
    }
  });

  function draw(picture, now) {
    if (canvas.width !== picture.width || canvas.height !== picture.height) {
      canvas.width = picture.width;
      canvas.height = picture.height;
      canvas.style.aspectRatio = `${picture.width} / ${picture.height}`;
    }
    context.drawImage(picture, 0, 0);
    picture.close();
    const scale = canvas.width / 640;
    context.lineWidth = 2 * scale;
    context.font = `600 ${Math.round(13 * scale)}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    for (const zone of zones) path(zone.points, now, true, zone.name, scale);
    for (const line of lines) path(line.points, now, false, line.name, scale);
    for (const one of now.people) {
      const [x0, y0, x1, y1] = one.box.map((value, at) => value * (at % 2 ? canvas.height : canvas.width));
      context.strokeStyle = context.fillStyle = colour(one.identity);
      context.strokeRect(x0, y0, x1 - x0, y1 - y0);
      const text = label(one), high = 18 * scale, wide = context.measureText(text).width + 10 * scale;
      const top = Math.max(0, y0 - high), left = Math.max(0, Math.min(x0, canvas.width - wide));
      context.fillRect(left, top, wide, high);
      context.fillStyle = "#fff";
      context.fillText(text, left + 5 * scale, top + high / 2);
    }
    if (!now.looked_at) write("opening the detector and the engine", scale);
  }

  function path(points, now, closed, text, scale) {
    const shares = points.flat().every((value) => value <= 1);
    const at = points.map(([x, y]) =>
      shares ? [x * canvas.width, y * canvas.height] : [(x / now.width) * canvas.width, (y / now.height) * canvas.height]);
    context.strokeStyle = "#ffd54a";
    context.setLineDash([6 * scale, 4 * scale]);
    context.beginPath();
    at.forEach(([x, y], number) => (number ? context.lineTo(x, y) : context.moveTo(x, y)));
    if (closed) context.closePath();
    context.stroke();
    context.setLineDash([]);
    context.fillStyle = "#ffd54a";
    context.fillText(text, at[0][0] + 4 * scale, at[0][1] + 10 * scale);
  }

  function write(text, scale) {
    context.fillStyle = "rgb(0 0 0 / .6)";
    context.fillRect(0, canvas.height - 26 * scale, canvas.width, 26 * scale);
    context.fillStyle = "#fff";
    context.fillText(text, 10 * scale, canvas.height - 13 * scale);
  }

  function list(now) {
    const mark = now.people.map(label).join("|");
    if (mark === shown) return;
    shown = mark;
    who.replaceChildren(...now.people.map((one) => {
      const button = make("button", { type: "button", className: "chip", textContent: label(one), style: chip(one.identity) });
      button.disabled = !one.identity;
      button.onclick = () => onPerson(one.identity);
      return make("li", {}, button);
    }));
  }

  return {
    element: figure,
    update(status) {
      badge.className = `badge ${status.state}`;
      badge.textContent = status.message ? `${status.state}: ${status.message}` : status.live
        ? `${status.state}, ${status.rate.toFixed(0)}/s`
        : status.total ? `${status.state}, ${Math.floor((100 * status.frames) / status.total)} %` : status.state;
      badge.title = status.address;
    },
  };
}

function label(one) {
  const who = one.name || one.identity || "?";
  if (one.state !== "known" || one.probability === null) return who;
  return `${who} ${Math.round(100 * one.probability)} %`;
}
