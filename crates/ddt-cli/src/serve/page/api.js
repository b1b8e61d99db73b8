// The HTTP interface, see docs/serve.md.

/** A name for this tab: one of its jobs runs at a time. */
function client() {
  let name = sessionStorage.getItem("client");
  if (!name) {
    name = [...crypto.getRandomValues(new Uint8Array(12))].map((it) => it.toString(16).padStart(2, "0")).join("");
    sessionStorage.setItem("client", name);
  }
  return name;
}

/** The JSON of an answer; an error has the server's words, its `status` and, as `wait`, the seconds to wait. */
export async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is ddt serve running?");
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    const error = new Error(body.error ?? `the server answered ${answer.status}`);
    error.status = answer.status;
    error.wait = Number(answer.headers.get("retry-after") ?? 0);
    throw error;
  }
  return body;
}

export function submit(submission) {
  const headers = { "content-type": "application/json", "ddt-client": client() };
  return call("/api/jobs", { method: "POST", headers, body: JSON.stringify(submission) });
}

export function cancel(id) {
  return call(`/api/jobs/${id}`, { method: "DELETE" });
}

/** Calls `on[event](data)` for every event of a job, and `on.lost()` if the server no longer knows it. */
export function follow(id, on) {
  const events = new EventSource(`/api/jobs/${id}/events`);
  for (const name of ["queued", "running", "step", "preview", "done", "failed", "cancelled"]) {
    events.addEventListener(name, (event) => {
      if (["done", "failed", "cancelled"].includes(name)) events.close();
      on[name]?.(JSON.parse(event.data));
    });
  }
  events.addEventListener("error", () => {
    on.interrupted?.();
    // A refusal, or the page goes away, which must not be taken for one.
    if (events.readyState === EventSource.CLOSED) again(id, on);
  });
}

async function again(id, on) {
  try {
    await call(`/api/jobs/${id}`);
    follow(id, on);
  } catch (error) {
    if (error.status === 404) on.lost();
    else setTimeout(() => again(id, on), 1000);
  }
}
