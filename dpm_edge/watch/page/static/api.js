// Calls of the API, and small things that every part of the page needs.

export async function call(path, options = {}) {
  const changes = options.method && options.method !== "GET";
  const answer = await fetch(`/api/v1${path}`, {
    ...options,
    headers: { ...(changes ? { "X-Dpm-Edge": "1" } : {}), ...(options.headers || {}) },
  });
  const body = await answer.json().catch(() => ({ error: `expected JSON, got HTTP ${answer.status}` }));
  if (!answer.ok) throw new Error(body.error || `HTTP ${answer.status}`);
  return body;
}

export const send = (path, method, body) =>
  call(path, { method, body: body && JSON.stringify(body), headers: { "Content-Type": "application/json" } });

export function open(path, onMessage, onState) {
  // A WebSocket that connects again, with growing pauses, until `stop` is called.
  let pause = 500, socket, stopped = false;
  const connect = () => {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    socket = new WebSocket(`${scheme}://${location.host}/api/v1${typeof path === "function" ? path() : path}`);
    socket.binaryType = "blob";
    socket.onopen = () => { pause = 500; onState?.(true); };
    socket.onmessage = (message) => onMessage(message.data, socket);
    socket.onclose = () => {
      onState?.(false);
      if (!stopped) setTimeout(connect, pause);
      pause = Math.min(2 * pause, 8000);
    };
  };
  connect();
  return () => { stopped = true; socket.close(); };
}

export function make(tag, properties = {}, ...children) {
  const { dataset, style, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  Object.assign(element.dataset, dataset || {});
  for (const [name, value] of Object.entries(style || {})) element.style.setProperty(name, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function hue(identity) {
  let sum = 0;
  for (const letter of identity) sum = (sum * 31 + letter.codePointAt(0)) % 100003;
  return (sum * 137) % 360;
}

// One colour for each identity, readable with white letters (at least 4.5 to 1).
export const colour = (identity) => (identity ? `hsl(${hue(identity)} 65% 27%)` : "#5b6660");
export const chip = (identity) => ({ "--chip": colour(identity), "--chip-ink": "#fff" });

// Identity → the name that somebody gave.
export const names = new Map();
export const nameOf = (identity) => names.get(identity) || identity;

export const clock = (unix) =>
  new Date(unix * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
export const when = (unix) => {
  const date = new Date(unix * 1000), today = new Date();
  return date.toDateString() === today.toDateString() ? clock(unix) : `${date.toLocaleDateString()} ${clock(unix)}`;
};
export const time = (unix) =>
  make("time", { dateTime: new Date(unix * 1000).toISOString(), textContent: clock(unix), title: when(unix) });

export function span(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return whole % 60 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${whole / 60} min`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}
