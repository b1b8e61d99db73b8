// The images of a job, as they appear, and what is known of them at the end.

import { call } from "/api.js";
import { inWords } from "/form.js";

const byId = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...children) {
  const it = Object.assign(document.createElement(name), attributes);
  it.append(...children);
  return it;
}

export function copyButton(text, label = "Copy command") {
  const button = element("button", { type: "button", textContent: label });
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text).then(() => "Copied", () => "Select the text to copy it").then((said) => {
      button.textContent = said;
      setTimeout(() => { button.textContent = label; }, 2000);
    });
  });
  return button;
}

export const seconds = (it) => `${it.toFixed(it < 10 ? 2 : 1)} s`;
export const times = (it) => `${it.toFixed(2)} times as fast`;
export const mean = (values) => values.reduce((sum, it) => sum + it, 0) / values.length;

/** One job's runs side by side. */
export class Results {
  constructor(id, { request, settings }, names) {
    this.id = id;
    this.columns = request.images_per_class;
    this.runs = settings.map((it, run) => {
      const title = settings.length > 1 ? ["First settings", "Other settings"][run] : "Settings";
      const captions = request.classes.flatMap((label) =>
        Array.from({ length: this.columns }, (_, column) => `${names[label].split(",")[0]} #${column}`));
      const tiles = captions.map((caption) => {
        const canvas = element("canvas", { width: 1, height: 1 });
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", `${caption}, seed ${request.seed}, not generated yet`);
        return { canvas, caption, figure: element("figure", {}, canvas, element("figcaption", { textContent: caption })) };
      });
      const facts = element("div");
      const section = element("div", { className: "run" },
        element("h3", { textContent: title }), element("p", { className: "quiet", textContent: inWords(it) }),
        element("div", { className: "tiles" }, ...tiles.map((tile) => tile.figure)), facts);
      return { tiles, facts, section, seed: request.seed, drawn: -1 };
    });
    byId("runs").replaceChildren(...this.runs.map((it) => it.section));
    byId("comparison").replaceChildren();
  }

  /** Draws the sheet of a run: the latest preview or the images themselves. */
  async draw({ run, number }) {
    const it = this.runs[run];
    if (number < it.drawn) return;
    it.drawn = number;
    const sheet = new Image();
    sheet.src = `/api/jobs/${this.id}/runs/${run}/sheet.png?number=${number}`;
    try {
      await sheet.decode();
    } catch {
      return;
    }
    // A later one was asked for meanwhile.
    if (number < it.drawn) return;
    const { tiles, seed } = it;
    const side = sheet.naturalWidth / this.columns;
    const tall = sheet.naturalHeight / (tiles.length / this.columns);
    tiles.forEach(({ canvas, caption }, at) => {
      Object.assign(canvas, { width: side, height: tall });
      const [x, y] = [at % this.columns * side, Math.floor(at / this.columns) * tall];
      canvas.getContext("2d").drawImage(sheet, x, y, side, tall, 0, 0, side, tall);
      canvas.setAttribute("aria-label", `${caption}, seed ${seed}`);
    });
    byId("runs").dataset.drawn = number;
  }

  /** Shows times, files and commands, and returns the result. */
  async finish() {
    const result = await call(`/api/jobs/${this.id}/result.json`);
    await Promise.all(result.runs.map((_, run) => this.draw({ run, number: Infinity })));
    result.runs.forEach((run, at) => {
      const list = element("dl");
      const fact = (name, value) => list.append(element("dt", { textContent: name }), element("dd", { textContent: value }));
      fact("time", seconds(run.seconds));
      fact("encoder ran at", `${run.encoder_calls} of ${run.decoder_calls} evaluations`);
      if (run.encoder_calls < run.decoder_calls) fact("predicted", `${times(run.predicted_speedup)} as without sharing`);
      const download = element("a", { href: `/api/jobs/${this.id}/runs/${at}/image.png`, download: `${run.name}.png`, textContent: "Download PNG" });
      this.runs[at].facts.replaceChildren(list,
        element("div", { className: "links" }, download, copyButton(run.command)), element("code", { textContent: run.command }));
    });
    if (result.comparison) this.compare(result.comparison);
    return result;
  }

  compare({ measured_speedup, latent_errors, pixel_errors }) {
    const rows = this.runs[0].tiles.map(({ caption }, at) => element("tr", {},
      element("th", { scope: "row", textContent: caption }),
      element("td", { textContent: latent_errors[at].toFixed(4) }), element("td", { textContent: pixel_errors[at].toFixed(4) })));
    const head = ["image", "latents", "pixels"].map((it) => element("th", { scope: "col", textContent: it }));
    const caption = `The other settings were ${times(measured_speedup)}; mean error of latents ${mean(latent_errors).toFixed(4)}`;
    byId("comparison").replaceChildren(element("table", {},
      element("caption", { textContent: caption }), element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)),
      element("p", { className: "quiet", textContent: "Errors are root mean squares of the difference: of latents relative to the first settings' latents, of pixels relative to the range of a pixel." }));
  }
}
