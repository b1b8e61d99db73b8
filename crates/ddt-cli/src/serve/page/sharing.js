// The similarity of the steps, and the plans of every budget.

import { call } from "/api.js";
import { element, mean, times } from "/results.js";

const byId = (id) => document.getElementById(id);

/** Shades from dark (different) to light (equal), readable without colour. */
function shade(share) {
  const stops = [[26, 20, 74], [130, 52, 130], [231, 111, 81], [252, 246, 190]];
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  return stops[low].map((it, i) => Math.round(it + (stops[low + 1][i] - it) * (at - low)));
}

export class Sharing {
  /** `onTry(plan)` and `onUse(plan)` are called with the plan that the slider shows. */
  constructor(onTry, onUse) {
    byId("budget").addEventListener("input", () => this.show());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.measured && this.show());
    byId("try").addEventListener("click", () => onTry(this.settings, this.chosen.plan));
    byId("use").addEventListener("click", () => onUse(this.settings, this.chosen.plan));
  }

  get chosen() {
    return this.measured.plans[Number(byId("budget").value)];
  }

  async finish(id, settings) {
    this.measured = await call(`/api/jobs/${id}/result.json`);
    this.settings = { ...settings, sharing: "none" };
    byId("plan").hidden = false;
    byId("measured").hidden = true;
    byId("measured").tBodies[0].replaceChildren();
    const budget = byId("budget");
    budget.max = this.measured.plans.length - 1;
    budget.value = Math.round(this.measured.plans.length / 4);
    const { num_steps, similarity } = this.measured;
    this.lowest = similarity.reduce((least, it) => Math.min(least, it), 1);
    byId("scale").textContent = `Dark is ${this.lowest.toFixed(3)}, light is 1.`;
    byId("map").setAttribute("aria-label",
      `Similarity of ${num_steps} steps: the lowest is ${this.lowest.toFixed(3)}, between steps ${this.pairOfLowest().join(" and ")}`);
    this.show();
  }

  pairOfLowest() {
    const at = this.measured.similarity.indexOf(this.lowest);
    return [Math.floor(at / this.measured.num_steps), at % this.measured.num_steps];
  }

  show() {
    const { plan, predicted_speedup, mean_error, even_error } = this.chosen;
    const [runs, steps] = [plan.recompute_steps.length, plan.num_steps];
    this.drawMap(plan.recompute_steps);
    this.drawStrip(plan);
    const percent = Math.round(100 * (1 - runs / steps));
    byId("budget").setAttribute("aria-valuetext", `${runs} of ${steps} steps`);
    byId("plan-text").textContent = `The encoder runs at ${runs} of ${steps} steps (${percent} % shared): predicted ${times(predicted_speedup)}, `
      + `mean error of the self-condition ${mean_error.toFixed(4)} (${even_error.toFixed(4)} with even steps).`;
    byId("strip").setAttribute("aria-label", `Recomputed at steps ${plan.recompute_steps.join(", ")}`);
  }

  drawMap(recompute) {
    const { num_steps, similarity } = this.measured;
    const [map, scale] = [byId("map"), Math.max(1, Math.round(352 / num_steps))];
    map.width = map.height = num_steps * scale;
    const context = map.getContext("2d");
    const range = Math.max(1 - this.lowest, 1e-6);
    similarity.forEach((it, at) => {
      context.fillStyle = `rgb(${shade((it - this.lowest) / range).join(" ")})`;
      context.fillRect(at % num_steps * scale, Math.floor(at / num_steps) * scale, scale, scale);
    });
    context.fillStyle = "rgb(0 0 0 / 70%)";
    for (const step of recompute.filter((it) => it > 0)) {
      context.fillRect(step * scale, 0, 1, map.height);
      context.fillRect(0, step * scale, map.width, 1);
    }
  }

  drawStrip({ recompute_steps, num_steps }) {
    const strip = byId("strip");
    const style = getComputedStyle(document.documentElement);
    strip.width = num_steps * 4;
    const context = strip.getContext("2d");
    for (let step = 0; step < num_steps; step++) {
      context.fillStyle = style.getPropertyValue(recompute_steps.includes(step) ? "--accent" : "--line");
      context.fillRect(step * 4, 0, 3, 1);
    }
  }

  /** Adds what a run without and with a plan measured. */
  tried(plan, { runs, comparison }) {
    const cells = [`${plan.recompute_steps.length} of ${plan.num_steps}`, runs[1].predicted_speedup.toFixed(2),
      comparison.measured_speedup.toFixed(2), mean(comparison.latent_errors).toFixed(4)];
    byId("measured").tBodies[0].append(element("tr", {}, ...cells.map((it) => element("td", { textContent: it }))));
    byId("measured").hidden = false;
  }
}
