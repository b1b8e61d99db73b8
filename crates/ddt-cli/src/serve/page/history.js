// Finished images with all their settings, in this browser's storage.

import { inWords } from "/form.js";
import { copyButton, element, mean, seconds, times } from "/results.js";

const byId = (id) => document.getElementById(id);
const KEY = "history";
const MOST = 24;
/** Larger PNG files are not stored, and can be made again by their command. */
const MAX_PNG = 150000;

function load() {
  try {
    const entries = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(entries) ? entries : [];
  } catch {
    return [];
  }
}

function store(entries) {
  while (entries.length) {
    try {
      localStorage.setItem(KEY, JSON.stringify(entries));
      return;
    } catch {
      entries.pop();
    }
  }
}

async function dataUrl(path) {
  const answer = await fetch(path);
  if (!answer.ok) return null;
  const blob = await answer.blob();
  if (blob.size > MAX_PNG) return null;
  return new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => resolve(null);
    reader.readAsDataURL(blob);
  });
}

export class History {
  /** `onRestore(generate)` is called with the submission of an entry. */
  constructor(names, onRestore) {
    Object.assign(this, { names, onRestore });
    byId("forget").addEventListener("click", () => {
      localStorage.removeItem(KEY);
      this.show();
    });
    // Another tab finished an image.
    addEventListener("storage", () => this.show());
    this.show();
  }

  async add(id, generate, result, thumbnail) {
    const runs = await Promise.all(result.runs.map(async ({ seconds, command, name }, run) =>
      ({ seconds, command, name, png: await dataUrl(`/api/jobs/${id}/runs/${run}/image.png`) })));
    const { comparison } = result;
    const error = comparison && { speedup: comparison.measured_speedup, latents: mean(comparison.latent_errors) };
    const entry = { when: new Date().toISOString(), generate, runs, error, thumbnail };
    store([entry, ...load()].slice(0, MOST));
    this.show();
  }

  show() {
    const entries = load();
    byId("history-empty").hidden = entries.length > 0;
    byId("forget").hidden = entries.length === 0;
    byId("entries").replaceChildren(...entries.map((it) => this.row(it)));
  }

  row({ when, generate, runs, error, thumbnail }) {
    const { request, settings } = generate;
    const names = request.classes.map((it) => (this.names[it] ?? `class ${it}`).split(",")[0]);
    const text = element("div", {}, element("p", {
      textContent: `${names.join(", ")}: ${request.images_per_class} of each, seed ${request.seed}, ${new Date(when).toLocaleString()}`,
    }));
    runs.forEach((run, at) => {
      text.append(element("p", { className: "quiet", textContent: `${inWords(settings[at])}: ${seconds(run.seconds)}` }));
    });
    if (error) {
      text.append(element("p", { className: "quiet", textContent: `${times(error.speedup)}, mean error of latents ${error.latents.toFixed(4)}` }));
    }
    const links = element("div", { className: "links" });
    const restore = element("button", { type: "button", textContent: "Restore settings" });
    restore.addEventListener("click", () => this.onRestore(generate));
    links.append(restore);
    runs.forEach((run, at) => {
      const suffix = runs.length > 1 ? ` ${at + 1}` : "";
      if (run.png) links.append(element("a", { href: run.png, download: `${run.name}.png`, textContent: `Download PNG${suffix}` }));
      links.append(copyButton(run.command, `Copy command${suffix}`));
    });
    text.append(links);
    return element("li", {}, element("img", { src: thumbnail, alt: `First image: ${names[0]}` }), text);
  }
}
